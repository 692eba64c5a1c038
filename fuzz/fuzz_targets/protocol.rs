//! Anything that the reader process could send, or be sent: frames are read as they were written, and no length is believed.
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
                // As it came: JSON has many ways to write the same.
                written.push(b'J');
                written.extend((json.len() as u32).to_le_bytes());
                written.extend(json);
            }
        }
    }
    assert!(bytes.starts_with(&written));
});
