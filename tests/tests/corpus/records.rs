//! Records that a store gives back damaged, forged or swapped: 90 to 102. The handler never runs, nothing panics, and what is
//! replayed is one whole response.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use idem_axum::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, Idempotency, Record, StorageKey, Store, StoreCapabilities,
    StoreError,
};
use idem_tests::{Ask, Connection, Probe, Reply, Server, Setup, post as send};

use crate::app::{assert_alive, assert_small, routes};
use crate::{CodedInput, coded};

pub const INPUTS: &[CodedInput] = coded![
    90 => nothing,
    91 => cut_short_at_each_byte,
    92 => of_an_unknown_version,
    93 => with_a_status_that_is_none,
    94 => with_a_line_end_in_a_header,
    95 => with_a_header_name_that_is_none,
    96 => with_a_length_that_is_wrong,
    97 => with_a_transfer_encoding,
    98 => with_lengths_past_its_end,
    99 => that_is_a_claim,
    100 => of_another_request,
    101 => with_each_bit_turned,
    102 => with_a_fingerprint_of_another_make,
];

/// Holds one record, and gives it to every caller. It judges expiry itself: never.
#[derive(Clone, Default)]
struct Vault(Arc<Mutex<Option<Record>>>);

impl Vault {
    fn record(&self) -> Record {
        self.0.lock().expect("not poisoned").clone().expect("a record")
    }

    fn put(&self, record: Record) {
        *self.0.lock().expect("not poisoned") = Some(record);
    }
}

impl Store for Vault {
    type Claim = Vault;

    async fn begin(&self, _: &StorageKey, _: &Fingerprint, _: &BeginOptions) -> Result<Begin<Vault>, StoreError> {
        let record = self.0.lock().expect("not poisoned").clone();
        Ok(record.map_or_else(|| Begin::Claimed(self.clone()), Begin::Completed))
    }

    async fn ended(&self, _: &StorageKey) {}

    async fn forget(&self, _: &StorageKey) -> Result<bool, StoreError> {
        panic!("a record that cannot be read is not forgotten");
    }

    fn attach(&self, _: &Arc<dyn Clock>) -> StoreCapabilities {
        StoreCapabilities { judges_expiry: true, claims_live_with_owner: true }
    }
}

impl Claim for Vault {
    async fn renew(&mut self, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }

    async fn complete(self, record: Record, _: Duration) -> Result<(), StoreError> {
        self.put(record);
        Ok(())
    }

    async fn release(self) -> Result<(), StoreError> {
        panic!("everything is recorded");
    }
}

struct World {
    vault: Vault,
    probe: Probe,
    server: Server,
    /// Kept open, so that a response that is longer or shorter than it says would show in the next one.
    connection: Connection,
    first: Reply,
    good: Record,
}

fn ask() -> Ask {
    send("/order").key("k").body("x")
}

impl World {
    /// With the record of one run.
    async fn new() -> Self {
        let vault = Vault::default();
        let (app, probe) = Setup::mount(&Idempotency::new(vault.clone()), routes());
        let server = Server::start(app).await;
        let mut connection = Connection::open(&server).await;
        let first = ask().over(&mut connection).await;
        first.assert_ran(201);
        let good = vault.record();
        Self { vault, probe, server, connection, first, good }
    }

    /// The response if the store returns this record.
    async fn given(&mut self, fingerprint: Fingerprint, bytes: impl Into<Bytes>) -> Reply {
        self.vault.put(Record::new(fingerprint, bytes.into()));
        let reply = ask().over(&mut self.connection).await;
        assert_eq!(self.probe.runs(), 1, "the handler ran again: {reply:?}");
        assert_small(&reply);
        reply
    }

    async fn given_bytes(&mut self, bytes: impl Into<Bytes>) -> Reply {
        self.given(*self.good.fingerprint(), bytes).await
    }

    async fn assert_refused(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let reply = self.given_bytes(bytes.clone()).await;
        assert_eq!(reply.code().as_deref(), Some("idempotency_store_unavailable"), "{bytes:?}: {reply:?}");
        reply.assert_refused(503, "idempotency_store_unavailable");
        // A retry finds the same.
        assert_eq!(reply.header("retry-after"), None);
        assert!(self.vault.record().bytes() == &bytes, "the store still has it");
    }

    /// The record it was is replayed still, and the connection and the server are in order.
    async fn end(mut self) {
        let good = self.good.bytes().clone();
        self.given_bytes(good).await.assert_replay_of(&self.first);
        assert_alive(&self.server).await;
    }
}

/// A record of a response: version, kind, expiry, the lengths of execution info and content; then version, status, number of
/// headers; for each the lengths of name and value, and both; the body; the length of the trailers, and of a body not sent.
fn record(status: u16, headers: &[(&[u8], &[u8])], body: &[u8]) -> Vec<u8> {
    let mut content = [&[1][..], &status.to_le_bytes()].concat();
    content.extend(u16::try_from(headers.len()).expect("few").to_le_bytes());
    for (name, value) in headers {
        content.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
        content.extend(u32::try_from(value.len()).expect("short").to_le_bytes());
        content.extend([*name, *value].concat());
    }
    content.extend(body);
    content.extend([0; FOOT]);
    with_head(&content)
}

/// The end of a recorded response: no trailers, and no body that was not sent.
const FOOT: usize = 4 + 8;

fn with_head(content: &[u8]) -> Vec<u8> {
    let length = u64::try_from(content.len()).expect("short");
    [&[1, 1][..], &u64::MAX.to_le_bytes(), &0_u16.to_le_bytes(), &length.to_le_bytes(), content].concat()
}

async fn all_refused(records: impl IntoIterator<Item = Vec<u8>>) {
    let mut world = World::new().await;
    for record in records {
        world.assert_refused(record).await;
    }
    world.end().await;
}

async fn nothing() {
    all_refused([Vec::new()]).await;
}

/// The body of a record has no length: the bytes are the store's to keep whole.
async fn cut_short_at_each_byte() {
    let mut world = World::new().await;
    let good = world.good.bytes().clone();
    for length in 0..good.len() {
        world.assert_refused(good.slice(..length)).await;
    }
    world.end().await;
}

async fn of_an_unknown_version() {
    let good = World::new().await.good.bytes().to_vec();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    // Of the record, its kind, and of the response in it.
    all_refused([
        changed(0, 0),
        changed(0, 2),
        changed(0, 3),
        changed(0, 255),
        changed(1, 0),
        changed(1, 2),
        changed(1, 3),
        changed(20, 2),
    ])
    .await;
}

async fn with_a_status_that_is_none() {
    all_refused([0, 99, 100, 101, 199, 1000, u16::MAX].map(|status| record(status, &[], b"x"))).await;
}

async fn with_a_line_end_in_a_header() {
    let values: [&[u8]; 4] = [b"1\r\nx-b: 2", b"1\n", b"\r", b"\0"];
    all_refused(values.map(|value| record(200, &[(b"x-a", value)], b"x"))).await;
}

async fn with_a_header_name_that_is_none() {
    let names: [&[u8]; 5] = [b"", b":status", b"x a", b"x\r\ny", b"\xff"];
    all_refused(names.map(|name| record(200, &[(name, b"1")], b"x"))).await;
}

async fn with_a_length_that_is_wrong() {
    let mut world = World::new().await;
    for length in [&b"1"[..], b"9", b"999", b"x"] {
        let reply = world.given_bytes(record(200, &[(b"Content-Length", length)], b"0123456789")).await;
        assert_eq!((reply.header("content-length"), reply.text()), (Some("10"), "0123456789"));
    }
    for status in [204, 304] {
        let reply = world.given_bytes(record(status, &[], b"HTTP/1.1 200 OK\r\n\r\n")).await;
        assert_eq!((reply.status, reply.body.len()), (status, 0), "no second response");
    }
    world.end().await;
}

async fn with_a_transfer_encoding() {
    let mut world = World::new().await;
    let hop: [(&[u8], &[u8]); 4] =
        [(b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"upgrade", b"h2c"), (b"trailer", b"x")];
    let reply = world.given_bytes(record(200, &hop, b"0\r\n\r\n")).await;
    assert_eq!((reply.header("content-length"), reply.text()), (Some("5"), "0\r\n\r\n"));
    assert!(hop.iter().all(|(name, _)| reply.all(&String::from_utf8_lossy(name)).is_empty()), "{reply:?}");
    world.end().await;
}

async fn with_lengths_past_its_end() {
    let lengths = |count: u16, name: u16, value: u32| {
        let header = [&name.to_le_bytes()[..], &value.to_le_bytes(), b"x-a1", &[0; FOOT]].concat();
        with_head(&[&[1][..], &200_u16.to_le_bytes(), &count.to_le_bytes(), &header].concat())
    };
    all_refused([
        lengths(1, 3, u32::MAX),
        lengths(1, u16::MAX, 1),
        lengths(1, u16::MAX, u32::MAX),
        lengths(1, 3, 2),
        lengths(2, 3, 1),
        lengths(u16::MAX, 3, 1),
    ])
    .await;
}

async fn that_is_a_claim() {
    let claims: [&[u8]; 3] = [b"claim:6f1c0e1a", b"{\"state\":\"running\"}", &[0; 64]];
    all_refused(claims.map(<[u8]>::to_vec)).await;
}

async fn of_another_request() {
    let mut world = World::new().await;
    let mut other = World::new().await;
    *other.vault.0.lock().expect("not poisoned") = None;
    send("/order").key("other").body("secret").over(&mut other.connection).await.assert_ran(201);
    let swapped = other.vault.record();
    let reply = world.given(*swapped.fingerprint(), swapped.bytes().clone()).await;
    reply.assert_refused(422, "idempotency_key_mismatch");
    world.end().await;
}

async fn with_each_bit_turned() {
    let mut world = World::new().await;
    let good = world.good.bytes().to_vec();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let reply = world.given_bytes(bytes).await;
        let code = reply.code();
        let refused = reply.status == 503 && code.as_deref() == Some("idempotency_store_unavailable");
        assert!(reply.is_replay() || refused, "bit {bit}: {reply:?}");
    }
    for bit in 0..256 {
        let mut fingerprint = *world.good.fingerprint().as_bytes();
        fingerprint[bit / 8] ^= 1 << (bit % 8);
        let reply = world.given(Fingerprint::from_bytes(fingerprint), good.clone()).await;
        reply.assert_refused(422, "idempotency_key_mismatch");
    }
    world.end().await;
}

async fn with_a_fingerprint_of_another_make() {
    let mut world = World::new().await;
    for byte in [0, 0xff] {
        let good = world.good.bytes().clone();
        let reply = world.given(Fingerprint::from_bytes([byte; 32]), good).await;
        reply.assert_refused(422, "idempotency_key_mismatch");
    }
    world.end().await;
}
