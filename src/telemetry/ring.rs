//! A ring of records between a core and the thread that writes the access log.
//!
//! One writer, one reader, no lock and no wait on either side: a record that finds no room is left
//! out, and whoever pushed it counts that. The memory of a ring is touched only as far as it is
//! used, so one that is never written costs address space alone.

use rtrb::{Consumer, Producer, RingBuffer};

/// Bytes of the length in front of each record.
const LENGTH_BYTES: usize = 4;

/// Makes a ring for this many bytes of records, their lengths included.
#[must_use]
pub fn ring(bytes: usize) -> (RecordWriter, RecordReader) {
    let (producer, consumer) = RingBuffer::new(bytes);
    (RecordWriter(producer), RecordReader(consumer))
}

/// The end that a core holds.
#[derive(Debug)]
pub struct RecordWriter(Producer<u8>);

impl RecordWriter {
    /// Adds one record, unless there is no room for it; whether it was added.
    #[must_use]
    pub fn push(&mut self, record: &[u8]) -> bool {
        let Ok(length) = u32::try_from(record.len()) else { return false };
        let Ok(mut chunk) = self.0.write_chunk(LENGTH_BYTES + record.len()) else { return false };
        let (first, second) = chunk.as_mut_slices();
        let taken = copy_over(&length.to_ne_bytes(), first, second, 0);
        copy_over(record, first, second, taken);
        chunk.commit_all();
        true
    }
}

/// Copies `from` to position `at` of two slices that follow each other; returns where it ends.
fn copy_over(from: &[u8], first: &mut [u8], second: &mut [u8], at: usize) -> usize {
    let in_first = first.len().saturating_sub(at).min(from.len());
    let (head, rest) = from.split_at(in_first);
    if !head.is_empty() {
        first[at..at + in_first].copy_from_slice(head);
    }
    if !rest.is_empty() {
        let start = (at + in_first) - first.len();
        second[start..start + rest.len()].copy_from_slice(rest);
    }
    at + from.len()
}

/// The end that the log's thread holds.
#[derive(Debug)]
pub struct RecordReader(Consumer<u8>);

impl RecordReader {
    /// Whether no record waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the oldest record, in place of what `into` held; false when there is none.
    pub fn pop(&mut self, into: &mut Vec<u8>) -> bool {
        let mut length = [0; LENGTH_BYTES];
        let Ok(chunk) = self.0.read_chunk(LENGTH_BYTES) else { return false };
        let (first, second) = chunk.as_slices();
        length[..first.len()].copy_from_slice(first);
        length[first.len()..].copy_from_slice(second);
        chunk.commit_all();
        // A writer publishes the length and the record together, so the record is there.
        let record_bytes = u32::from_ne_bytes(length) as usize;
        let Ok(chunk) = self.0.read_chunk(record_bytes) else { return false };
        into.clear();
        let (first, second) = chunk.as_slices();
        into.extend_from_slice(first);
        into.extend_from_slice(second);
        chunk.commit_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_without_room_is_left_out_and_the_next_one_is_whole() {
        let (mut writer, mut reader) = ring(16);
        let mut seen = Vec::new();
        assert!(writer.push(b"12345678"));
        assert!(!writer.push(b"x"), "12 of 16 bytes are taken, 5 are needed");
        assert!(writer.push(b""));
        assert!(!writer.push(&[0; 13]), "it would never fit");
        assert!(reader.pop(&mut seen) && seen == b"12345678");
        assert!(reader.pop(&mut seen) && seen.is_empty());
        assert!(!reader.pop(&mut seen));
        assert!(writer.push(b"abcdefgh"), "it goes around the end");
        assert!(reader.pop(&mut seen) && seen == b"abcdefgh");
    }

    #[test]
    fn two_threads_lose_nothing_that_was_taken() {
        let (mut writer, mut reader) = ring(300);
        let (records, mut taken) = (20_000u32, 0u32);
        let writing = std::thread::spawn(move || {
            (0..records).filter(|n| writer.push(&n.to_be_bytes()[..(n % 5) as usize])).count()
        });
        let mut seen = Vec::new();
        while !writing.is_finished() {
            while reader.pop(&mut seen) {
                taken += 1;
            }
        }
        while reader.pop(&mut seen) {
            taken += 1;
        }
        assert_eq!(writing.join().unwrap(), taken as usize);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(
            bytes in 1usize..200,
            turns in proptest::collection::vec((0usize..40, any::<bool>()), 0..200),
        ) {
            let (mut writer, mut reader) = ring(bytes);
            let (mut waiting, mut seen) = (VecDeque::new(), Vec::new());
            for (at, (length, pops)) in turns.into_iter().enumerate() {
                let record: Vec<u8> = (0..length).map(|i| (at + i) as u8).collect();
                let used: usize = waiting.iter().map(|r: &Vec<u8>| r.len() + LENGTH_BYTES).sum();
                let fits = used + length + LENGTH_BYTES <= bytes;
                prop_assert_eq!(writer.push(&record), fits);
                if fits {
                    waiting.push_back(record);
                }
                if pops {
                    let expected = waiting.pop_front();
                    prop_assert_eq!(reader.pop(&mut seen).then(|| seen.clone()), expected);
                }
            }
        }
    }
}
