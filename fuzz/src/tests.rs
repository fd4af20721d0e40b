//! Each target over its corpus and over inputs that are made from it: no fuzzer is needed, and a failure names the input.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// How many inputs are made for each target.
const CASES: usize = 3000;
/// The longest input that is made, in bytes.
const INPUT_BYTES_MAX: usize = 4096;
/// What is put into inputs: words that mean something to one target or another.
const WORDS: &[&str] = &[
    "\n",
    " ",
    ",",
    "=",
    "!=",
    " in (",
    ")",
    "(",
    "[",
    "]",
    "{",
    "}",
    "\"",
    ":",
    "\\u0000",
    "%2f",
    "%",
    "&",
    "?",
    "/",
    "null",
    "true",
    "-1",
    "0",
    "9223372036854775807",
    "1e999",
    "\"type\":\"object\"",
    "\"$patch\":\"delete\"",
    "\"name\":\"a\"",
    "\"default\":{}",
    "\"items\":",
    "\"properties\":{",
    "watch=true",
    "limit=0",
    "/status",
    "self",
    ".all(x, ",
    ".map(x, ",
    "size()",
    "has(",
    "authorization: Bearer ",
    "impersonate-user: ",
    "eyJhbGciOiJub25lIn0.",
    ".",
    "\u{1F980}",
    "\u{0}",
    "k8s\0",
    "\u{3}web\u{4}shop\u{3}svc\u{7}cluster\u{5}local\0\0\u{1}\0\u{1}",
    "\0\u{21}\0\u{1}",
    "\0\0\u{29}\u{4}\0\0\0\0\0\0\0",
];

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }
}

/// One change: a byte, a word, a piece that goes, comes twice or comes from another input.
fn mutate(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = random.below(input.len() + 1);
    let end = (at + 1 + random.below(12)).min(input.len());
    match random.below(6) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 | 2 => {
            let word = WORDS[random.below(WORDS.len())].bytes();
            input.splice(at..at, word);
        }
        3 if at < end => drop(input.drain(at..end)),
        4 if at < end => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            let to = (from + random.below(40)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn check(name: &str, seed: u64, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    let run = |input: &[u8], which: &str| {
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        assert!(outcome.is_ok(), "{name}, {which}: {:?}", String::from_utf8_lossy(input));
    };
    for (input, path) in corpus.iter().zip(&files) {
        run(input, &path.display().to_string());
    }
    let mut random = Random(seed);
    for case in 0..CASES {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &corpus);
        }
        run(&input, &format!("seed {seed}, case {case}"));
    }
}

#[test]
fn request() {
    check("request", 1, crate::request);
}

#[test]
fn credentials() {
    check("credentials", 11, crate::credentials);
}

#[test]
fn selectors() {
    check("selectors", 2, crate::selectors);
}

#[test]
fn patches() {
    check("patches", 3, crate::patches);
}

#[test]
fn apply() {
    check("apply", 4, crate::apply);
}

#[test]
fn crd_schema() {
    check("crd_schema", 5, crate::crd_schema);
}

#[test]
fn cel() {
    check("cel", 6, crate::cel);
}

#[test]
fn protobuf() {
    check("protobuf", 7, crate::protobuf);
}

#[test]
fn disk() {
    check("disk", 9, crate::disk);
}

/// The seeds reach what they are meant to reach: a store that opens.
#[test]
fn disks_of_the_corpus_open() {
    use kstore::testing::disk::damage;
    let read = |name| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/disk").join(name)).unwrap();
    let (log, torn, records, checkpoint) = (read("log"), read("torn"), read("records"), read("checkpoint"));
    let cases = [
        (damage::log(&log[1..]), 2),
        (damage::log(&torn[1..]), 1),
        (damage::log_of_records(&records[2..], u32::from(records[1])), 1_001),
        (damage::checkpoint(&checkpoint[1..]), 9),
    ];
    for (files, revision) in cases {
        assert_eq!(damage::open_files(files).unwrap().revision.get(), revision);
    }
}

#[test]
fn json() {
    check("json", 8, crate::json);
}

#[test]
fn dns() {
    check("dns", 12, crate::dns);
}

#[test]
fn spdy() {
    check("spdy", 9, crate::spdy);
}

#[test]
fn etcd() {
    check("etcd", 10, crate::etcd);
}
