//! Uploads that a killed process left behind. Their parts cost money, and no list of objects shows
//! them.

use http::Method;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    bucket::Bucket,
    call::Call,
    failure::{element, elements, unescaped},
};
use crate::error::{Code, Error, Result};

pub(super) const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
pub(super) const UNRESERVED_AND_SLASH: &AsciiSet = &UNRESERVED.remove(b'/');
/// A service that repeats a page must not keep us for ever.
const MOST_PAGES: usize = 1_000;

/// An upload that was neither completed nor aborted. It may still be running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The name below the prefix.
    pub name: String,
    pub started: Timestamp,
    id: String,
}

impl Bucket {
    /// Returns the unfinished uploads directly below the prefix. `KG_UNSUPPORTED` if the service has
    /// no such list: Azure deletes old parts by its own rules.
    pub fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        let bucket_url = self.bucket_url()?;
        let prefix = self.location().key("");
        let mut found = Vec::new();
        let mut marker = (String::new(), String::new());
        for _ in 0..MOST_PAGES {
            let url = page_url(&bucket_url, &prefix, &marker);
            let page = self.run(|bucket| async move {
                let request = bucket.transport.request(Method::GET, &url, Call::default());
                request.await
            })?;
            let action = "list the unfinished uploads of";
            let page = page.map_err(|failure| self.failed(action, "", &failure))?;
            found.extend(read_page(&String::from_utf8_lossy(&page), &prefix));
            let next = |name| element(&page, name).unwrap_or_default();
            let is_last = next("IsTruncated") != "true";
            let next = (next("NextKeyMarker"), next("NextUploadIdMarker"));
            if is_last || next == marker {
                break;
            }
            marker = next;
        }
        Ok(found)
    }

    /// Deletes the parts of an unfinished upload. One that is gone is no error.
    pub fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<()> {
        let key = self.location().key(&upload.name);
        let url = format!(
            "{}/{}?uploadId={}",
            self.bucket_url()?,
            utf8_percent_encode(&key, UNRESERVED_AND_SLASH),
            utf8_percent_encode(&upload.id, UNRESERVED)
        );
        let aborted = self.run(|bucket| async move {
            let request = bucket
                .transport
                .request(Method::DELETE, &url, Call::default());
            request.await
        })?;
        match aborted {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_missing() => Ok(()),
            Err(failure) => Err(self.failed("end the upload of", &upload.name, &failure)),
        }
    }

    fn bucket_url(&self) -> Result<String> {
        self.0.bucket_url.clone().ok_or_else(|| {
            Error::new(
                Code::Unsupported,
                format!("The service of {} does not list uploads", self.location()),
                "Leave it to the rules of the service, which delete old parts",
            )
        })
    }
}

fn page_url(bucket_url: &str, prefix: &str, (key, id): &(String, String)) -> String {
    let encoded = |text| utf8_percent_encode(text, UNRESERVED).to_string();
    let mut url = format!("{bucket_url}?prefix={}&uploads=", encoded(prefix));
    if !key.is_empty() {
        url = format!(
            "{bucket_url}?key-marker={}&prefix={}&upload-id-marker={}&uploads=",
            encoded(key),
            encoded(prefix),
            encoded(id)
        );
    }
    url
}

fn read_page<'a>(page: &'a str, prefix: &'a str) -> impl Iterator<Item = UnfinishedUpload> + 'a {
    elements(page, "Upload").filter_map(move |upload| {
        let text = |name| elements(upload, name).next().map(unescaped);
        let key = text("Key")?;
        let name = key.strip_prefix(prefix)?;
        (!name.is_empty() && !name.contains('/')).then_some(())?;
        Some(UnfinishedUpload {
            name: name.to_string(),
            started: text("Initiated")?.parse().ok()?,
            id: text("UploadId")?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_uploads_is_read() {
        let page = "<R><IsTruncated>false</IsTruncated>\
            <Upload><Key>kg/a&amp;b</Key><UploadId>1/2</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>\
            <Upload><Key>kg/deep/er</Key><UploadId>3</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>\
            <Upload><Key>other</Key><UploadId>4</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload></R>";
        let found: Vec<_> = read_page(page, "kg/").collect();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].name.as_str(), found[0].id.as_str()),
            ("a&b", "1/2")
        );
    }
}
