//! The options that messages name, as the flags of the command line.
//!
//! The core names an option by its name in the API, such as `lockTimeout`. A user of `kg` reads the
//! flag instead. Settings such as `backup.retentionDays` have the same name for both users.

use serde_json::Value;

/// The flags for each option of the API. An option that several flags set has all of them.
const FLAGS: [(&str, &[&str]); 26] = [
    ("backupDir", &["--backup-dir"]),
    ("backupIds", &["--copy"]),
    ("basedOn", &["--base-backup"]),
    ("cascade", &["--cascade"]),
    ("compressionLevel", &["--level"]),
    ("directory", &["--directory"]),
    ("encrypt: false", &["--no-encrypt"]),
    ("encryption.identityFile", &["--identity"]),
    ("encryption.passphraseFile", &["--passphrase-file"]),
    ("encryption.recipients", &["--recipient"]),
    (
        "encryption.requireEncryption",
        &["--decrypt", "--require-encryption"],
    ),
    ("excludePatterns", &["--exclude"]),
    ("force", &["--force"]),
    // The other rules have flags of the same form.
    ("keep", &["--keep-daily"]),
    ("keepSettings", &["--keep-settings"]),
    ("lockTimeout", &["--lock-timeout"]),
    ("maxBackups", &["--max-backups"]),
    ("maxChainLength", &["--max-chain"]),
    ("overwrite", &["--overwrite"]),
    ("paths", &["--path"]),
    ("projectRoot", &["--project"]),
    ("retentionDays", &["--retention-days"]),
    ("strict", &["--strict"]),
    ("forceRead", &["--force-read"]),
    ("targetDir", &["--target"]),
    ("type", &["--type"]),
];

/// The option of an object store, which `kg` takes from the environment.
const OF_STORE: &str = " in `storageOptions`";

/// Returns a message or remedy with the flags in place of the options that it names in backquotes.
pub fn translate(text: &str) -> String {
    FLAGS
        .iter()
        .fold(of_environment(text), |text, (option, flags)| {
            let quoted: Vec<String> = flags.iter().map(|flag| format!("`{flag}`")).collect();
            text.replace(&format!("`{option}`"), &quoted.join(" or "))
        })
}

/// Removes the options of an object store for which the text names the environment too.
fn of_environment(text: &str) -> String {
    let mut text = text.to_string();
    let of_both = format!("{OF_STORE} or ");
    while let Some(at) = text.find(&of_both) {
        let before = text.get(..at).unwrap_or_default();
        let option = before.trim_end_matches('`').rfind('`').unwrap_or(at);
        text.replace_range(option..at + of_both.len(), "");
    }
    text.replace(
        &format!("{OF_STORE} and the environment"),
        " in the environment",
    )
}

/// Translates each error, warning, issue and problem in a result: the objects with a code and a
/// message. Other values may be texts of the user.
pub fn translate_all(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(translate_all),
        Value::Object(fields) => {
            if fields.contains_key("code") && fields.contains_key("message") {
                for name in ["message", "remedy"] {
                    if let Some(Value::String(text)) = fields.get_mut(name) {
                        *text = translate(text);
                    }
                }
            }
            fields.values_mut().for_each(translate_all);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};
    use serde_json::json;

    use super::*;
    use crate::cli::Kg;

    fn has_flag(command: &Command, flag: &str) -> bool {
        let is_flag = |name: &&str| flag.strip_prefix("--") == Some(*name);
        let mut arguments = command.get_arguments();
        arguments.any(|argument| {
            let names = argument.get_long_and_visible_aliases();
            names.iter().flatten().any(is_flag)
        }) || command.get_subcommands().any(|sub| has_flag(sub, flag))
    }

    #[test]
    fn every_flag_of_the_table_exists() {
        let command = Kg::command();
        for (option, flags) in FLAGS {
            for flag in flags {
                assert!(has_flag(&command, flag), "{flag} for {option}");
            }
        }
        assert!(!has_flag(&command, "--lock-time"));
    }

    #[test]
    fn options_become_flags_and_settings_stay() {
        for (text, shown) in [
            ("raise `lockTimeout`", "raise `--lock-timeout`"),
            (
                "`force` or `targetDir`, not `strict`",
                "`--force` or `--target`, not `--strict`",
            ),
            (
                "leave out `encryption.requireEncryption`",
                "leave out `--decrypt` or `--require-encryption`",
            ),
            ("`backup.retentionDays` is 0", "`backup.retentionDays` is 0"),
            (
                "run `kg diag restore --file latest` by force",
                "run `kg diag restore --file latest` by force",
            ),
            ("/data/force`d is not keep", "/data/force`d is not keep"),
            (
                "Check `endpoint` in `storageOptions` or AWS_ENDPOINT_URL: it",
                "Check AWS_ENDPOINT_URL: it",
            ),
            (
                "Check `endpoint` and the credentials in `storageOptions` and the environment",
                "Check `endpoint` and the credentials in the environment",
            ),
        ] {
            assert_eq!(translate(text), shown);
        }
    }

    #[test]
    fn only_messages_with_a_code_are_translated() {
        let mut result = json!({
            "description": "`force`",
            "warnings": [{ "code": "A", "message": "`force`", "path": "`force`" }],
            "error": { "code": "B", "message": "`keep`", "remedy": "`strict`", "cause": "`strict`" },
            "hook": { "message": "`force`" },
        });
        translate_all(&mut result);
        let expected = json!({
            "description": "`force`",
            "warnings": [{ "code": "A", "message": "`--force`", "path": "`force`" }],
            "error": { "code": "B", "message": "`--keep-daily`", "remedy": "`--strict`", "cause": "`strict`" },
            "hook": { "message": "`force`" },
        });
        assert_eq!(result, expected);
    }
}
