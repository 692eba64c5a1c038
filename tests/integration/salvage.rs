//! Databases with every kind of damage that the format allows. Salvage returns the intact rows and
//! nothing else.

use std::{collections::BTreeMap, fs};

use kg_backup::internals::{
    salvage::{report::LogUse, salvage},
    util::operation::CancelToken,
};
use proptest::prelude::*;
use rusqlite::Connection;

use crate::support::{
    Intact, Variant, build,
    damage::{Tally, judge, noise},
};

const VARIANTS: [Variant; 8] = [
    Variant::new(512, "UTF-8", false),
    Variant::new(1024, "UTF-16le", true),
    Variant::new(4096, "UTF-8", false),
    Variant::new(4096, "UTF-8", true),
    Variant::new(8192, "UTF-16be", false),
    Variant::new(65536, "UTF-8", false),
    Variant {
        reserved: 40,
        ..Variant::new(1024, "UTF-8", true)
    },
    Variant {
        in_wal: true,
        ..Variant::new(2048, "UTF-8", false)
    },
];

fn with_page(intact: &Intact, number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = intact.bytes.clone();
    let start = (number as usize - 1) * intact.page_size;
    bytes[start..start + content.len()].copy_from_slice(content);
    bytes
}

fn intact(variant: Variant) -> Intact {
    let dir = tempfile::tempdir().unwrap();
    build(
        &dir.path().join("intact.db"),
        variant,
        if variant.page_size < 4096 { 90 } else { 150 },
    )
}

#[test]
fn an_intact_database_comes_back_as_it_was() {
    for variant in VARIANTS {
        let intact = intact(variant);
        let (tally, salvaged) = judge(&intact, &intact.bytes);
        let salvaged = salvaged.unwrap();
        let rows: usize = intact.rows.values().map(Vec::len).sum();
        assert_eq!(
            (tally.whole, tally.invented),
            (tally.saved, 0),
            "{variant:?}"
        );
        assert_eq!(
            salvaged.rows_recovered as usize, rows,
            "{variant:?}: {salvaged:?}"
        );
        assert_eq!(salvaged.lost_and_found, None, "{variant:?}");
        assert!(
            salvaged
                .objects
                .iter()
                .all(|object| object.failed.is_none()),
            "{:?}",
            salvaged.objects
        );
    }
}

#[test]
fn damaged_pages_cost_no_row_on_another_page_and_invent_none() {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for (seed, variant) in VARIANTS.into_iter().enumerate() {
        let intact = intact(variant);
        for kind in [
            "schema",
            "table leaf",
            "table interior",
            "index",
            "overflow",
            "full text",
            "free",
        ] {
            let pages: Vec<u32> = intact
                .kinds
                .iter()
                .filter(|(page, of)| **of == kind && **page > 1)
                .map(|(page, _)| *page)
                .collect();
            for (index, page) in pages
                .iter()
                .step_by(pages.len().div_ceil(3).max(1))
                .enumerate()
            {
                let zeros = vec![0; intact.page_size];
                for (how, content) in [
                    ("zeros", zeros),
                    ("noise", noise((seed * 9 + index) as u64, intact.page_size)),
                ] {
                    let (tally, _) = judge(&intact, &with_page(&intact, *page, &content));
                    assert_eq!(
                        (tally.invented, tally.changed),
                        (0, 0),
                        "{variant:?}, {kind} {page}, {how}"
                    );
                    let sum = tallies.entry(format!("{kind}, {how}")).or_default();
                    sum.cases += 1;
                    sum.whole += tally.whole;
                    sum.saved += tally.saved;
                    sum.aside += tally.aside;
                    if tally.saved + tally.aside < tally.whole {
                        println!("{variant:?}, {kind} {page}, {how}: {tally:?}");
                    }
                }
            }
        }
    }
    let table: String = tallies
        .iter()
        .map(|(kind, tally)| {
            format!(
                "| {kind} | {} | {} | {} | {} |\n",
                tally.cases, tally.whole, tally.saved, tally.aside
            )
        })
        .collect();
    println!("{table}");
    assert!(tallies.values().map(|tally| tally.cases).sum::<usize>() >= 60);
    for (kind, tally) in &tallies {
        assert_eq!(tally.saved + tally.aside, tally.whole, "{kind}");
        assert!(
            tally.aside == 0 || kind.starts_with("schema"),
            "{kind}: {tally:?}"
        );
    }
    assert!(
        include_str!("../../docs/internals/salvage-results.md").contains(&table),
        "the document says what happens"
    );
}

#[test]
fn a_page_that_was_also_written_over_another_brings_no_row_into_a_second_table() {
    for variant in [VARIANTS[1], VARIANTS[2], VARIANTS[4]] {
        let intact = intact(variant);
        // The first and the last leaf of each table that has rows of its own, and some others.
        let mut pages: Vec<u32> = Vec::new();
        for places in intact.places.values() {
            let mut leaves = places
                .iter()
                .filter_map(|pages| pages.iter().find(|page| intact.kinds[page] == "table leaf"));
            pages.extend(leaves.next().into_iter().chain(leaves.next_back()));
        }
        let inner = intact
            .kinds
            .iter()
            .filter(|(page, kind)| **kind == "table interior" && **page > 1);
        pages.extend(inner.map(|(page, _)| *page).take(2));
        pages.sort_unstable();
        pages.dedup();
        for from in &pages {
            let start = (*from as usize - 1) * intact.page_size;
            let content = intact.bytes[start..start + intact.page_size].to_vec();
            for over in pages.iter().filter(|over| *over != from) {
                let (tally, _) = judge(&intact, &with_page(&intact, *over, &content));
                assert_eq!(
                    tally.invented, 0,
                    "{variant:?}, {from} over {over}: {tally:?}"
                );
                assert_eq!(
                    tally.saved + tally.aside,
                    tally.whole,
                    "{variant:?}, {from} over {over}: {tally:?}"
                );
            }
        }
    }
}

#[test]
fn a_misplaced_page_of_many_children_does_not_speak_against_the_wal() {
    for page_size in [512, 1024] {
        let intact = intact(Variant {
            in_wal: true,
            ..Variant::new(page_size, "UTF-16le", false)
        });
        let of = |kind| {
            intact
                .kinds
                .iter()
                .filter(move |(page, of)| **of == kind && **page > 1)
                .map(|(page, _)| *page)
        };
        for from in of("table interior") {
            let start = (from as usize - 1) * page_size;
            let content = &intact.bytes[start..start + page_size];
            for over in of("table leaf") {
                let (tally, salvaged) = judge(&intact, &with_page(&intact, over, content));
                // Without the WAL, rows that it deletes would come back.
                let wal = salvaged.unwrap().wal;
                assert_eq!(
                    (tally.invented, wal),
                    (0, LogUse::Applied),
                    "{page_size}, {from} over {over}: {tally:?}"
                );
            }
        }
    }
}

#[test]
fn a_table_that_is_a_copy_of_another_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let connection = Connection::open(&source).unwrap();
    let made = "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT); CREATE TABLE b (id INTEGER PRIMARY KEY, x TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
        INSERT INTO a SELECT i, 'row ' || i FROM n; INSERT INTO b SELECT * FROM a;";
    connection.execute_batch(made).unwrap();
    drop(connection);
    let salvaged = salvage(&source, &target, &[], &CancelToken::default()).unwrap();
    assert_eq!(
        (salvaged.rows_recovered, salvaged.lost_and_found),
        (4000, None)
    );
}

#[test]
fn a_damaged_header_costs_no_row() {
    for variant in VARIANTS {
        let intact = intact(variant);
        for (from, to) in [
            (0, 100),
            (0, 16),
            (16, 18),
            (20, 21),
            (24, 28),
            (28, 32),
            (32, 36),
            (36, 40),
            (40, 44),
            (44, 48),
            (56, 60),
            (92, 96),
        ] {
            for value in [0, 0xff] {
                let content = [&intact.bytes[..from], &vec![value; to - from]].concat();
                let (tally, _) = judge(&intact, &with_page(&intact, 1, &content));
                assert_eq!(tally.invented, 0, "{variant:?}: {from}..{to} = {value}");
                // Page 1 itself is damaged, but holds no row of a table.
                assert_eq!(
                    tally.saved, tally.whole,
                    "{variant:?}: {from}..{to} = {value}"
                );
            }
        }
    }
}

#[test]
fn a_file_that_is_too_short_or_too_long_keeps_what_is_before_its_end_and_invents_nothing() {
    for variant in [VARIANTS[0], VARIANTS[2], VARIANTS[3]] {
        let intact = intact(variant);
        // Something was written after the end: a few bytes, half a page, or more than a page.
        for more in [1, 100, variant.page_size / 2, variant.page_size + 7] {
            let (tally, _) = judge(&intact, &[&intact.bytes[..], &noise(3, more)].concat());
            assert_eq!(
                (tally.invented, tally.saved),
                (0, tally.whole),
                "{variant:?}, {more} bytes more"
            );
        }
        for part in 0..12 {
            let (tally, _) = judge(&intact, &intact.bytes[..intact.bytes.len() * part / 12]);
            assert_eq!(tally.invented, 0, "{variant:?}, cut to {part} twelfths");
            assert_eq!(
                tally.saved, tally.whole,
                "{variant:?}, cut to {part} twelfths"
            );
        }
    }
}

#[test]
fn what_is_no_database_is_refused() {
    let intact = intact(VARIANTS[2]);
    for content in [
        Vec::new(),
        b"just a text\n".repeat(2000),
        noise(7, 200_000),
        vec![0; 100_000],
    ] {
        assert!(judge(&intact, &content).1.is_none());
    }
}

#[test]
fn where_the_first_page_is_lost_each_row_is_in_its_table_or_in_lost_and_found() {
    let mut sum = Tally::default();
    for (seed, variant) in VARIANTS.into_iter().enumerate() {
        let intact = intact(variant);
        for content in [
            vec![0; intact.page_size],
            noise(seed as u64, intact.page_size),
        ] {
            let (tally, salvaged) = judge(&intact, &with_page(&intact, 1, &content));
            let salvaged = salvaged.unwrap();
            // Deleted rows do not come back, although the record of the free pages is lost.
            assert_eq!(tally.invented, 0, "{variant:?}");
            assert_eq!(
                tally.saved + tally.aside,
                tally.whole,
                "{variant:?}: {salvaged:?}"
            );
            assert_eq!(salvaged.page_size_bytes as usize, intact.page_size);
            if intact.wal.is_none() {
                assert!(!salvaged.header_readable && !salvaged.schema_readable);
            }
            (sum.cases, sum.whole, sum.saved) = (
                sum.cases + 1,
                sum.whole + tally.whole,
                sum.saved + tally.saved,
            );
            sum.aside += tally.aside;
        }
    }
    let row = format!(
        "| first, zeros or noise | {} | {} | {} | {} |\n",
        sum.cases, sum.whole, sum.saved, sum.aside
    );
    println!("{row}");
    assert!(
        include_str!("../../docs/internals/salvage-results.md").contains(&row),
        "the document says what happens"
    );
}

#[test]
fn a_flipped_bit_changes_at_most_one_row() {
    for variant in [VARIANTS[0], VARIANTS[3]] {
        let intact = intact(variant);
        for (index, offset) in noise(11, 160).chunks(4).enumerate() {
            let at = u32::from_le_bytes([offset[0], offset[1], offset[2], offset[3]]) as usize
                % intact.bytes.len();
            let mut bytes = intact.bytes.clone();
            bytes[at] ^= 1 << (index % 8);
            let (tally, _) = judge(&intact, &bytes);
            // A change inside a value cannot be detected. It affects at most the one row that the
            // value is a part of.
            assert!(
                tally.invented + tally.changed <= 1,
                "{variant:?}: bit at {at}, {tally:?}"
            );
        }
    }
}

#[test]
fn committed_changes_in_the_wal_are_there_and_those_of_a_foreign_wal_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live.db");
    let connection = Connection::open(&live).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (1)").unwrap();
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    connection
        .execute_batch("INSERT INTO a VALUES (2)")
        .unwrap();
    let other = Connection::open(dir.path().join("other.db")).unwrap();
    other
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE b (y); INSERT INTO b VALUES (9); CREATE TABLE c (z)")
        .unwrap();
    for (wal, expected) in [("live.db-wal", 2), ("other.db-wal", 1)] {
        let source = dir.path().join("source.db");
        fs::copy(&live, &source).unwrap();
        fs::copy(dir.path().join(wal), dir.path().join("source.db-wal")).unwrap();
        let target = dir.path().join(format!("salvaged-{expected}.db"));
        let salvaged = salvage(&source, &target, &[], &CancelToken::default()).unwrap();
        let read = Connection::open(&target).unwrap();
        let rows: i64 = read
            .query_row("SELECT count(*) FROM a", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, expected, "{wal}: {salvaged:?}");
        assert_eq!(
            salvaged.warnings.len(),
            usize::from(wal.starts_with("other"))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_bytes_never_stop_it(seed in any::<u64>(), at in 0..60_usize, length in 1..9000_usize) {
        let intact = intact(VARIANTS[0]);
        let mut bytes = intact.bytes.clone();
        let start = at * bytes.len() / 60;
        let end = (start + length).min(bytes.len());
        bytes[start..end].copy_from_slice(&noise(seed, end - start));
        judge(&intact, &bytes);
    }

    #[test]
    fn several_lost_pages_invent_no_row(seed in any::<u64>(), pages in prop::collection::vec((any::<u32>(), any::<bool>()), 1..9)) {
        let intact = intact(VARIANTS[if seed % 2 == 0 { 0 } else { 3 }]);
        let mut bytes = intact.bytes.clone();
        for (page, is_noise) in pages {
            let start = page as usize % (bytes.len() / intact.page_size) * intact.page_size;
            let content = if is_noise { noise(seed ^ u64::from(page), intact.page_size) } else { vec![0; intact.page_size] };
            bytes[start..start + intact.page_size].copy_from_slice(&content);
        }
        prop_assert_eq!(judge(&intact, &bytes).0.invented, 0);
    }
}
