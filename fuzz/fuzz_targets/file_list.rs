//! Fuzzes lists of files. A parsed list must read the same after it is written again, and a list
//! after changes must be in order. The second list follows an empty line.
#![no_main]

use kg_backup::internals::archive::{
    file_list::{FileList, ListParser, ListWriter},
    filter::EntryFilter,
};
use libfuzzer_sys::fuzz_target;

fn parse(text: &[u8]) -> Option<FileList> {
    let mut parser = ListParser::default();
    text.chunks(11).for_each(|piece| parser.push(piece));
    parser.finish().ok()
}

fn written(files: &FileList) -> Vec<u8> {
    let mut writer = ListWriter::new(Vec::new());
    for record in files.records() {
        writer.push(record).expect("memory takes everything");
    }
    std::mem::take(writer.out())
}

fuzz_target!(|text: &[u8]| {
    let end = text.windows(2).position(|pair| pair == b"\n\n");
    let (base, changes) = end.map_or((text, &[][..]), |end| (&text[..end + 1], &text[end + 2..]));
    let Some(base) = parse(base) else { return };
    assert_eq!(parse(&written(&base)).as_ref(), Some(&base));
    assert_eq!(
        EntryFilter::default().select(&base).len(),
        base.records().len()
    );
    for record in base.records() {
        let _ = (record.entry_size(), record.state());
        let found = base.find(&record.path).map(|index| &base.records()[index]);
        assert!(found.is_some_and(|found| found.path == record.path));
    }
    let Some(Ok(after)) = parse(changes).map(|changes| base.after(changes)) else {
        return;
    };
    assert_eq!(parse(&written(&after)).as_ref(), Some(&after));
});
