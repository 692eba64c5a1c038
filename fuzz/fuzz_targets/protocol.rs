//! Fuzzes the frames to and from the worker process. A frame must read as it was written, and no
//! length may be trusted.
#![no_main]

use kg_backup::internals::worker::protocol::{
    Frame, Message, Request, read_frame, write_block, write_data, write_json,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut written = Vec::new();
    while let Ok(frame) = read_frame(&mut rest) {
        match frame {
            Frame::Data(data) => write_data(&mut written, &data).expect("a frame"),
            Frame::Block(block, hash) => write_block(&mut written, &block, &hash).expect("a frame"),
            Frame::Json(json) => {
                if let Ok(message) = serde_json::from_slice::<Message>(&json) {
                    let mut again = Vec::new();
                    write_json(&mut again, &message).expect("a frame");
                    assert!(matches!(
                        read_frame(&mut again.as_slice()),
                        Ok(Frame::Json(_))
                    ));
                }
                let _ = serde_json::from_slice::<Request>(&json);
                // Copied unchanged, because the same value can be written as JSON in many ways.
                written.push(b'J');
                written.extend((json.len() as u32).to_le_bytes());
                written.extend(json);
            }
        }
    }
    assert!(bytes.starts_with(&written));
});
