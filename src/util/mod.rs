//! What the other layers need of the operating system, and small types that all of them share.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`age`] | lengths of time as people write them |
//! | [`beneath`] | files below an open directory, reached without following links of others |
//! | [`durable`] | files that are there whole or not at all |
//! | [`scratch`] | temporary directories for this user alone |
//! | [`regular`] | opening files that another user may have put there |
//! | [`ownership`] | whose the files are that root writes |
//! | [`tolerated`] | what a file system may refuse |
//! | [`lock`] | waiting for a lock |
//! | [`content_hash`], [`hex`] | hashes of blocks and pages; digests as text |
//! | [`parallel`], [`threads`] | work on all cores, in order; threads that may not start |
//! | [`task`] | cancellation and progress |
//! | [`limits`] | how much a forged archive may take |

pub mod age;
pub mod beneath;
pub mod content_hash;
pub mod durable;
pub mod hex;
pub mod limits;
pub mod lock;
pub mod ownership;
pub mod parallel;
pub mod regular;
pub mod scratch;
pub mod task;
pub mod threads;
pub mod tolerated;
