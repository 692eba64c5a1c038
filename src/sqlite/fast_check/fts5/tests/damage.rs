//! Tests that no damage that SQLite finds is proven sound.

use std::cell::Cell;

use rusqlite::{params, types::Value};

use super::{IS_DOCLIST_INDEX, Sample};
use crate::sqlite::{fast_check::fts5::structure, format::btree::varint};

/// Pseudo-random numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Compares the results for damaged indexes with SQLite's results.
#[derive(Default)]
struct Trial {
    tried: Cell<usize>,
    found_by_sqlite: Cell<usize>,
    found_by_us: Cell<usize>,
}

impl Trial {
    fn compare(&self, sample: &Sample, what: &str) {
        let (ours, sqlites) = sample.judge();
        assert!(
            sqlites || !ours,
            "SQLite finds what was proven well formed: {what}"
        );
        let add = |to: &Cell<usize>, one: bool| to.set(to.get() + usize::from(one));
        add(&self.tried, true);
        add(&self.found_by_sqlite, !sqlites);
        add(&self.found_by_us, !ours);
    }

    fn end(self, kind: &str, at_least: usize) {
        let (tried, sqlite, ours) = (
            self.tried.get(),
            self.found_by_sqlite.get(),
            self.found_by_us.get(),
        );
        println!(
            "{kind}: of {tried} damaged indexes SQLite found {sqlite}, and {ours} were not proven"
        );
        assert!(sqlite >= at_least && ours >= sqlite, "{kind}");
    }

    fn block(&self, sample: &Sample, id: i64, block: &[u8], what: &str) {
        let sound = sample.block(id);
        if block != sound {
            sample.set_block(id, block);
            self.compare(sample, what);
            sample.set_block(id, &sound);
        }
    }
}

/// Creates an index with several small segments, and doclist indexes of more than one height.
fn damageable() -> Sample {
    let sample = Sample::external(32)
        .add(-40, 400)
        .add(1000, 60)
        .add(2000, 40)
        .run("DELETE FROM notes WHERE id % 9 = 0");
    assert_eq!(sample.judge(), (true, true));
    assert!(sample.count(&format!("ft_data WHERE {IS_DOCLIST_INDEX}")) > 1);
    sample
}

#[test]
fn no_changed_byte_that_sqlite_finds_is_proven() {
    let sample = Sample::external(32)
        .add(-3, 16)
        .run("DELETE FROM notes WHERE id = 4")
        .add(40, 6);
    assert_eq!(sample.judge(), (true, true));
    let trial = Trial::default();
    for id in sample.ids("SELECT id FROM ft_data WHERE id <> 1") {
        let sound = sample.block(id);
        for at in 0..sound.len() {
            for byte in [
                sound[at] ^ 1,
                sound[at] ^ 0x80,
                sound[at].wrapping_add(2),
                0,
            ] {
                let mut block = sound.clone();
                block[at] = byte;
                trial.block(&sample, id, &block, &format!("byte {at} of {id} is {byte}"));
            }
        }
    }
    trial.end("changed bytes", 1000);
}

#[test]
fn no_random_change_of_a_block_that_sqlite_finds_is_proven() {
    let sample = damageable();
    let doclist_indexes = sample.ids(&format!("SELECT id FROM ft_data WHERE {IS_DOCLIST_INDEX}"));
    let all = sample.ids("SELECT id FROM ft_data WHERE id <> 1");
    let trial = Trial::default();
    let mut random = Random(4711);
    for round in 0..1000 {
        let ids = if round % 3 == 0 {
            &doclist_indexes
        } else {
            &all
        };
        let id = ids[random.below(ids.len())];
        let mut block = sample.block(id);
        match random.below(6) {
            0 => block.truncate(random.below(block.len())),
            1 => block.insert(random.below(block.len()), random.below(256) as u8),
            2 => drop(block.remove(random.below(block.len()))),
            3 => block = sample.block(ids[random.below(ids.len())]),
            _ => {
                for _ in 0..1 + random.below(3) {
                    let at = random.below(block.len());
                    block[at] ^= 1 << random.below(8);
                }
            }
        }
        if !(doclist_indexes.contains(&id) && leads_far(&block)) {
            trial.block(
                &sample,
                id,
                &block,
                &format!("round {round}, block {id}: {block:?}"),
            );
        }
    }
    trial.end("changed blocks", 500);
}

/// Returns whether SQLite would spend seconds counting from leaf to leaf for this page of a doclist
/// index.
fn leads_far(block: &[u8]) -> bool {
    block
        .get(1..)
        .and_then(varint)
        .is_some_and(|(page, _)| page > 10_000)
}

#[test]
fn no_lost_swapped_or_added_row_that_sqlite_finds_is_proven() {
    let sample = damageable();
    let trial = Trial::default();
    let ids = sample.ids("SELECT id FROM ft_data");
    let run = |sql: &str, parameters: &[&dyn rusqlite::ToSql]| {
        let _ = sample
            .writer
            .prepare_cached(sql)
            .unwrap()
            .execute(parameters);
    };
    for (index, id) in ids.iter().enumerate().step_by(3) {
        let sound = sample.block(*id);
        run("DELETE FROM ft_data WHERE id = ?1", &[id]);
        trial.compare(&sample, &format!("block {id} is lost"));
        run("INSERT INTO ft_data VALUES (?1, ?2)", &[id, &sound]);
        if index % 24 == 0 {
            let other = ids[(index * 31 + 7) % ids.len()];
            let others = sample.block(other);
            sample.set_block(*id, &others);
            sample.set_block(other, &sound);
            trial.compare(&sample, &format!("blocks {id} and {other} are swapped"));
            sample.set_block(*id, &sound);
            sample.set_block(other, &others);
            let text = Value::Text("a".repeat(20));
            for value in [
                Value::Null,
                Value::Integer(7),
                text,
                Value::Blob(Vec::new()),
            ] {
                run("UPDATE ft_data SET block = ?2 WHERE id = ?1", &[id, &value]);
                trial.compare(&sample, &format!("block {id} is {value:?}"));
            }
            sample.set_block(*id, &sound);
        }
    }
    assert_eq!(sample.judge(), (true, true));

    let entries: Vec<(i64, Vec<u8>, i64)> = {
        let mut statement = sample
            .writer
            .prepare("SELECT segid, term, pgno FROM ft_idx")
            .unwrap();
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    };
    for (segment, term, page) in entries.iter().step_by(11) {
        let longer = [&term[..], b"\xff"].concat();
        let shorter = term.get(1..).unwrap_or_default();
        let cut = &term[..term.len().saturating_sub(1)];
        let changed: [(&dyn rusqlite::ToSql, i64); 8] = [
            (term, page ^ 1),
            (term, page + 2),
            (term, page - 2),
            (term, -1),
            (&longer, *page),
            (&shorter, *page),
            (&cut, *page),
            (&"text", *page),
        ];
        for (number, (other, at)) in changed.into_iter().enumerate() {
            run(
                "DELETE FROM ft_idx WHERE segid = ?1 AND term = ?2",
                &[segment, term],
            );
            run(
                "INSERT OR IGNORE INTO ft_idx VALUES (?1, ?2, ?3)",
                &[segment, other, &at],
            );
            trial.compare(
                &sample,
                &format!("entry {segment} {term:?} {page} is changed in way {number}"),
            );
            run(
                "DELETE FROM ft_idx WHERE segid = ?1 AND term = ?2",
                &[segment, other],
            );
            restore(&sample, &entries, *segment);
        }
        run(
            "DELETE FROM ft_idx WHERE segid = ?1 AND term = ?2",
            &[segment, term],
        );
        trial.compare(&sample, &format!("entry {segment} {term:?} is lost"));
        restore(&sample, &entries, *segment);
        run(
            "INSERT OR IGNORE INTO ft_idx VALUES (?1, ?2, ?3)",
            &[segment, &longer, &(page + 2)],
        );
        trial.compare(
            &sample,
            &format!("an entry after {segment} {term:?} is added"),
        );
        run(
            "DELETE FROM ft_idx WHERE segid = ?1 AND term = ?2",
            &[segment, &longer],
        );
        restore(&sample, &entries, *segment);
    }
    assert_eq!(sample.judge(), (true, true));
    trial.end("changed rows", 300);
}

fn restore(sample: &Sample, entries: &[(i64, Vec<u8>, i64)], segment: i64) {
    let mut statement = sample
        .writer
        .prepare_cached("INSERT OR REPLACE INTO ft_idx VALUES (?1, ?2, ?3)")
        .unwrap();
    let together = sample.writer.unchecked_transaction().unwrap();
    for (_, term, page) in entries.iter().filter(|entry| entry.0 == segment) {
        statement.execute(params![segment, term, page]).unwrap();
    }
    together.commit().unwrap();
}

#[test]
fn no_changed_structure_that_sqlite_finds_is_proven() {
    let sample = damageable();
    let trial = Trial::default();
    let mut random = Random(815);
    let sound = sample.block(structure::RECORD_ID);
    for at in 0..sound.len() {
        for byte in 0..=255 {
            if byte % 8 == at as u8 % 8 || byte < 12 {
                let mut block = sound.clone();
                block[at] = byte;
                trial.block(
                    &sample,
                    structure::RECORD_ID,
                    &block,
                    &format!("structure {block:?}"),
                );
            }
        }
    }
    for _ in 0..300 {
        let mut block = sound.clone();
        let length = random.below(sound.len());
        block.truncate(length);
        block.extend((0..random.below(6)).map(|_| random.below(40) as u8));
        trial.block(
            &sample,
            structure::RECORD_ID,
            &block,
            &format!("structure {block:?}"),
        );
    }
    trial.end("changed structure", 500);
}
