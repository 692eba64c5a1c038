//! What a check of a store found.

use serde::Serialize;

use crate::error::{Code, Error};

/// What an operation is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Backups, restores and the lock.
    Backups,
    /// Deletions and retention.
    Retention,
    /// Nothing depends on it, but it may cost money or space.
    Advice,
}

/// From the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Works,
    /// It works, but someone should see to something.
    Warning,
    /// The answer proves neither a success nor a failure.
    CannotTell,
    /// An earlier operation failed.
    NotTried,
    Fails,
}

impl Outcome {
    pub fn is_good(self) -> bool {
        self <= Outcome::Warning
    }
}

/// An operation that the check tries.
pub struct Trial {
    pub name: &'static str,
    pub title: &'static str,
    pub needed_for: Need,
    /// The permission of S3 that it takes. Empty if permissions have no names.
    pub permission: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub name: &'static str,
    pub title: &'static str,
    pub needed_for: Need,
    pub outcome: Outcome,
    #[serde(flatten)]
    pub details: Details,
}

/// What an outcome does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreCheck {
    /// The URL or the directory.
    pub store: String,
    /// Whether backups and restores work: the worst outcome of what they need.
    pub backups: Outcome,
    /// Whether deletions and retention work.
    pub retention: Outcome,
    pub tried: Tried,
    pub operations: Vec<Operation>,
    /// What the check made and could not remove.
    pub remaining: Vec<String>,
    pub duration_ms: u64,
}

/// Where the operations were tried, and with which credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    /// For example `S3`, or `directory`.
    pub service: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where the credentials come from, never what they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
}

/// The outcome of one operation.
pub struct Finding {
    outcome: Outcome,
    details: Details,
    /// The permission that it takes, if it is not that of the operation.
    permission: Option<&'static str>,
}

impl Finding {
    pub fn works() -> Finding {
        Finding {
            outcome: Outcome::Works,
            details: Details::default(),
            permission: None,
        }
    }

    pub fn works_with(message: impl Into<String>) -> Finding {
        Finding {
            details: Details {
                message: Some(message.into()),
                ..Details::default()
            },
            ..Finding::works()
        }
    }

    pub fn warning(message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding {
            outcome: Outcome::Warning,
            details: Details {
                code: None,
                message: Some(message.into()),
                remedy: Some(remedy.into()),
            },
            permission: None,
        }
    }

    pub fn fails(error: Error) -> Finding {
        Finding::of(Outcome::Fails, error)
    }

    /// The error is why the operation proves nothing.
    pub fn cannot_tell(error: Error) -> Finding {
        Finding::of(Outcome::CannotTell, error)
    }

    /// An operation that is missing, but not needed.
    pub fn warns_of(error: Error) -> Finding {
        Finding::of(Outcome::Warning, error)
    }

    fn of(outcome: Outcome, error: Error) -> Finding {
        Finding {
            outcome,
            details: Details {
                code: Some(error.code),
                message: Some(error.message),
                remedy: Some(error.remedy),
            },
            permission: None,
        }
    }

    fn not_tried(title: &str) -> Finding {
        Finding {
            outcome: Outcome::NotTried,
            ..Finding::works_with(format!("needs: {title}"))
        }
    }

    /// Sets the permission that it takes.
    pub fn needing(self, permission: &'static str) -> Finding {
        Finding {
            permission: Some(permission),
            ..self
        }
    }

    /// Names the permission that is missing.
    fn allowed_by(mut self, usual: &'static str) -> Finding {
        let permission = self.permission.unwrap_or(usual);
        let details = &mut self.details;
        if details.code == Some(Code::StoreDenied) && !permission.is_empty() {
            let remedy = format!("Allow it to this user: on S3, this is `{permission}`");
            details.remedy = Some(remedy);
        }
        self
    }
}

/// The operations of a check in their order.
pub struct Report {
    trials: &'static [Trial],
    findings: Vec<Option<Finding>>,
    /// The operation without which the others could not be tried.
    stopped_by: &'static str,
}

impl Report {
    pub fn new(trials: &'static [Trial]) -> Report {
        Report {
            trials,
            findings: trials.iter().map(|_| None).collect(),
            stopped_by: "",
        }
    }

    /// Notes a finding, or replaces the one from before. Returns whether the operation works.
    pub fn note(&mut self, name: &str, finding: Finding) -> bool {
        let is_good = finding.outcome.is_good();
        let mut slots = self.findings.iter_mut().zip(self.trials);
        if let Some((slot, trial)) = slots.find(|(_, trial)| trial.name == name) {
            *slot = Some(finding.allowed_by(trial.permission));
        }
        is_good
    }

    /// Notes that an operation is not tried, because another one did not work.
    pub fn skip(&mut self, name: &str, needed: &str) {
        self.note(name, Finding::not_tried(self.title(needed)));
    }

    /// Notes that nothing else is tried, because this operation did not work.
    pub fn stop(&mut self, needed: &'static str) {
        self.stopped_by = needed;
    }

    pub fn outcome(&self, name: &str) -> Option<Outcome> {
        let mut found = self.findings.iter().zip(self.trials);
        let (finding, _) = found.find(|(_, trial)| trial.name == name)?;
        finding.as_ref().map(|finding| finding.outcome)
    }

    fn title(&self, name: &str) -> &'static str {
        let found = self.trials.iter().find(|trial| trial.name == name);
        found.map_or("", |trial| trial.title)
    }

    /// Returns the result. What was not found out was not tried.
    pub fn finish(self, store: String, tried: Tried, remaining: Vec<String>) -> StoreCheck {
        let needed = self.title(self.stopped_by);
        let findings = self.trials.iter().zip(self.findings);
        let operations = findings.map(|(trial, finding)| {
            let finding = finding.unwrap_or_else(|| Finding::not_tried(needed));
            Operation {
                name: trial.name,
                title: trial.title,
                needed_for: trial.needed_for,
                outcome: finding.outcome,
                details: finding.details,
            }
        });
        let operations: Vec<Operation> = operations.collect();
        StoreCheck {
            store,
            backups: worst(&operations, Need::Backups),
            retention: worst(&operations, Need::Retention),
            tried,
            operations,
            remaining,
            duration_ms: 0,
        }
    }
}

fn worst(operations: &[Operation], need: Need) -> Outcome {
    let needed = operations.iter().filter(|one| one.needed_for == need);
    let outcomes = needed.map(|one| one.outcome);
    outcomes.max().unwrap_or(Outcome::Works)
}
