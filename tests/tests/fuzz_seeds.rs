//! What the fuzz targets assert, over their seeds and every case they found (`fuzz/seeds`), and over each of these cut
//! short at every byte.

use std::fs;
use std::path::Path;

fn holds_for_the_seeds(target: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut seeds = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let seed = fs::read(&path).unwrap();
        for length in 0..=seed.len() {
            let _named = Named(&path, length);
            property(&seed[..length]);
        }
        seeds += 1;
    }
    assert!(seeds >= 10, "{seeds} seeds");
}

/// Says which seed it was.
struct Named<'a>(&'a Path, usize);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the first {} bytes of {}", self.1, self.0.display());
        }
    }
}

#[test]
fn key_parser() {
    holds_for_the_seeds("key_parser", idem_properties::key_parser);
}

#[test]
fn record_decoder() {
    holds_for_the_seeds("record_decoder", idem_properties::record_decoder);
}

#[test]
fn fingerprint_injectivity() {
    holds_for_the_seeds("fingerprint_injectivity", idem_properties::fingerprint_injectivity);
}

#[test]
fn header_filter() {
    holds_for_the_seeds("header_filter", idem_properties::header_filter);
}

#[test]
fn attribute_arguments() {
    holds_for_the_seeds("attribute_arguments", idem_properties::attribute_arguments);
}
