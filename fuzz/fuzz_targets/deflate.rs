//! Fuzzes the deflate of this crate. Two inflaters of other projects must read back any content,
//! whatever the same writer has deflated before. The first byte sets where the content is cut.
#![no_main]

use std::io::Read;

use kg_backup::internals::archive::deflate::Deflater;
use libfuzzer_sys::fuzz_target;

/// Content shorter than a window would reach neither its end nor a second part.
const REPEATS: usize = 300;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let long = [first.repeat(REPEATS), second.to_vec(), first.to_vec()].concat();
    let mut deflater = Deflater::default();
    for content in [bytes, &long, second] {
        let mut stream = Vec::new();
        deflater.deflate(content, &mut stream);
        let mut inflated = Vec::new();
        flate2::bufread::DeflateDecoder::new(&stream[..])
            .read_to_end(&mut inflated)
            .expect("a stream that zlib reads");
        assert!(inflated == content, "zlib reads something else");
        let mut inflated = vec![0; content.len()];
        let length = libdeflater::Decompressor::new()
            .deflate_decompress(&stream, &mut inflated)
            .expect("a stream that libdeflate reads");
        assert!(
            length == content.len() && inflated == content,
            "libdeflate reads something else"
        );
    }
});
