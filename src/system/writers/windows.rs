//! A file of Windows has an owner, and a list of who has which rights (DACL). The owner may change
//! the list.

use std::{
    fs::File,
    io,
    os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle},
    ptr::{addr_of, null, null_mut},
};

use windows_sys::Win32::{
    Foundation::{ERROR_SUCCESS, GENERIC_ALL, GENERIC_WRITE, LocalFree},
    Security::{
        ACCESS_ALLOWED_ACE, ACE_HEADER, ACL,
        Authorization::{
            ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW,
            GetSecurityInfo, SDDL_REVISION_1, SE_FILE_OBJECT, SetSecurityInfo,
        },
        DACL_SECURITY_INFORMATION, EqualSid, GetAce, GetSecurityDescriptorDacl,
        GetTokenInformation, INHERIT_ONLY_ACE, IsWellKnownSid, OWNER_SECURITY_INFORMATION,
        PROTECTED_DACL_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR, PSID, TOKEN_QUERY, TOKEN_USER,
        TokenUser, WinBuiltinAdministratorsSid, WinCreatorOwnerRightsSid, WinLocalSystemSid,
    },
    Storage::FileSystem::{
        DELETE, FILE_APPEND_DATA, FILE_WRITE_DATA, READ_CONTROL, WRITE_DAC, WRITE_OWNER,
    },
    System::{
        SystemServices::{ACCESS_ALLOWED_ACE_TYPE, ACCESS_DENIED_ACE_TYPE},
        Threading::{GetCurrentProcess, OpenProcessToken},
    },
};

use crate::system::portable::reopened;

/// The rights to change a file, to put another one in its place, and to give oneself such rights.
const CHANGES: u32 = FILE_WRITE_DATA
    | FILE_APPEND_DATA
    | DELETE
    | WRITE_DAC
    | WRITE_OWNER
    | GENERIC_WRITE
    | GENERIC_ALL;

#[allow(unsafe_code, reason = "std has no owners on Windows")]
pub fn foreign(file: &File) -> io::Result<Option<String>> {
    let (mut owner, mut list) = (null_mut(), null_mut());
    let mut descriptor = Local(null_mut());
    // SAFETY: the handle is open, and all places are valid. `owner` and `list` point into the
    // descriptor, which lives until the end of this function.
    let status = unsafe {
        GetSecurityInfo(
            file.as_raw_handle(),
            SE_FILE_OBJECT,
            OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
            &mut owner,
            null_mut(),
            &mut list,
            null_mut(),
            &mut descriptor.0,
        )
    };
    if status != ERROR_SUCCESS {
        return Err(io::Error::from_raw_os_error(status as i32));
    }
    let user = User::current()?;
    // SAFETY: `owner` points to an identifier in the descriptor.
    if !unsafe { is_trusted(owner, &user) } {
        // SAFETY: as above.
        let (owner, user) = unsafe { (text_of(owner)?, text_of(user.id())?) };
        return Ok(Some(format!(
            "it belongs to user {owner}, but this process runs as user {user}"
        )));
    }
    // SAFETY: `list` is null or points to a list in the descriptor.
    Ok(unsafe { others_write(list, &user) }.then(|| "other users can write to it".into()))
}

/// Returns whether a list lets a user who is not trusted change a file. An entry of an unknown kind
/// counts as one that does.
///
/// # Safety
///
/// `list` must be null or point to a valid list.
#[allow(unsafe_code, reason = "the entries of the list have no type")]
unsafe fn others_write(list: *const ACL, user: &User) -> bool {
    // Without a list, everybody has every right.
    if list.is_null() {
        return true;
    }
    // SAFETY: the caller promises a valid list.
    let count = unsafe { (*list).AceCount };
    (0..u32::from(count)).any(|number| {
        let mut entry = null_mut();
        // SAFETY: as above, and the number is below the count.
        if unsafe { GetAce(list, number, &mut entry) } == 0 {
            return true;
        }
        // SAFETY: each entry begins with a header.
        let header = unsafe { *entry.cast::<ACE_HEADER>() };
        let kind = u32::from(header.AceType);
        if u32::from(header.AceFlags) & INHERIT_ONLY_ACE != 0 || kind == ACCESS_DENIED_ACE_TYPE {
            return false;
        }
        if kind != ACCESS_ALLOWED_ACE_TYPE {
            return true;
        }
        let entry = entry.cast::<ACCESS_ALLOWED_ACE>();
        // SAFETY: an entry of this kind has a mask, and ends with the identifier of a user.
        unsafe {
            let id = addr_of!((*entry).SidStart).cast_mut().cast();
            (*entry).Mask & CHANGES != 0 && !is_trusted(id, user)
        }
    })
}

#[allow(unsafe_code, reason = "std has no owners on Windows")]
pub fn keep_others_out(file: &File) -> io::Result<()> {
    // SAFETY: the identifier is valid as long as the user.
    let user = unsafe { text_of(User::current()?.id()) }?;
    // Nothing is inherited (P). This user, the system and the administrators have every right, and
    // everybody may read.
    let wanted = format!("D:P(A;;FA;;;{user})(A;;FA;;;SY)(A;;FA;;;BA)(A;;FR;;;WD)");
    let wanted: Vec<u16> = wanted.encode_utf16().chain([0]).collect();
    let mut descriptor = Local(null_mut());
    let (mut is_there, mut list, mut is_default) = (0, null_mut(), 0);
    // SAFETY: the text ends with a zero, and all places are valid. The list is in the descriptor.
    let status = unsafe {
        if ConvertStringSecurityDescriptorToSecurityDescriptorW(
            wanted.as_ptr(),
            SDDL_REVISION_1,
            &mut descriptor.0,
            null_mut(),
        ) == 0
            || GetSecurityDescriptorDacl(descriptor.0, &mut is_there, &mut list, &mut is_default)
                == 0
        {
            return Err(io::Error::last_os_error());
        }
        SetSecurityInfo(
            reopened(file, READ_CONTROL | WRITE_DAC)?.as_raw_handle(),
            SE_FILE_OBJECT,
            DACL_SECURITY_INFORMATION | PROTECTED_DACL_SECURITY_INFORMATION,
            null_mut(),
            null_mut(),
            list,
            null(),
        )
    };
    match status {
        ERROR_SUCCESS => Ok(()),
        _ => Err(io::Error::from_raw_os_error(status as i32)),
    }
}

/// Returns whether an identifier is that of this user, the system or the administrators.
///
/// # Safety
///
/// `id` must point to a valid identifier.
#[allow(unsafe_code, reason = "std has no such calls")]
unsafe fn is_trusted(id: PSID, user: &User) -> bool {
    let known = [
        WinLocalSystemSid,
        WinBuiltinAdministratorsSid,
        // The owner of the file, which was checked already.
        WinCreatorOwnerRightsSid,
    ];
    // SAFETY: the caller promises a valid identifier.
    unsafe {
        EqualSid(id, user.id()) != 0 || known.iter().any(|kind| IsWellKnownSid(id, *kind) != 0)
    }
}

/// Returns an identifier as text, such as `S-1-5-18`.
///
/// # Safety
///
/// `id` must point to a valid identifier.
#[allow(unsafe_code, reason = "std has no such call")]
unsafe fn text_of(id: PSID) -> io::Result<String> {
    let mut text = null_mut();
    // SAFETY: the caller promises a valid identifier, and `text` is a valid place.
    if unsafe { ConvertSidToStringSidW(id, &mut text) } == 0 {
        return Err(io::Error::last_os_error());
    }
    let _freed_at_the_end = Local(text.cast());
    // SAFETY: the text ends with a zero.
    let text = unsafe {
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        std::slice::from_raw_parts(text, length)
    };
    Ok(String::from_utf16_lossy(text))
}

/// What the system has allocated for the caller.
struct Local(PSECURITY_DESCRIPTOR);

impl Drop for Local {
    #[allow(unsafe_code, reason = "the system allocated it")]
    fn drop(&mut self) {
        // SAFETY: the pointer is null or that of such memory, and nothing else frees it.
        unsafe { LocalFree(self.0) };
    }
}

/// The user that this process runs as.
struct User(Vec<TOKEN_USER>);

impl User {
    #[allow(unsafe_code, reason = "std has no such calls")]
    fn current() -> io::Result<Self> {
        let mut token = null_mut();
        // SAFETY: the place is valid.
        if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) } == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle was just created and belongs to nothing else.
        let token = unsafe { OwnedHandle::from_raw_handle(token) };
        // The identifier follows the structure. The longest one has 68 bytes.
        let mut found = vec![TOKEN_USER::default(); 8];
        let bytes = size_of_val(found.as_slice()) as u32;
        let mut needed = 0;
        // SAFETY: the handle is open, and the buffer has the length that is given.
        let read = unsafe {
            GetTokenInformation(
                token.as_raw_handle(),
                TokenUser,
                found.as_mut_ptr().cast(),
                bytes,
                &mut needed,
            )
        };
        match read {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(User(found)),
        }
    }

    fn id(&self) -> PSID {
        self.0[0].User.Sid
    }
}
