use super::*;

const KEY: StorageKey = StorageKey::from_bytes([0xa5; 32]);
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);
const OWNER: OwnerToken = OwnerToken::from_bytes([9; 16]);
const TTL: Duration = Duration::from_secs(3600);

fn name() -> Name {
    Name::new("shop", &KEY)
}

fn info() -> ExecutionInfo {
    ExecutionInfo::from_bytes(&[&[1, 0][..], &[5; 8 + 8 + 4 + 8], b"POST /orders"].concat()).unwrap()
}

#[test]
fn a_name_has_the_prefix_and_the_hash_and_shows_eight_digits_of_it() {
    assert_eq!(name().0, format!("shop:{}", "a5".repeat(32)));
    assert_eq!(name().channel(), format!("shop:{}:ended", "a5".repeat(32)));
    assert_eq!(name().short(), "shop:a5a5a5a5*");
}

#[test]
fn a_name_is_read_back_and_nothing_else_is_one() {
    let digits = "a5".repeat(32);
    let key = |name: &str| Name::key("shop", name.as_bytes());
    assert_eq!(key(&name().0), Some(KEY));
    let (longer, letters) = (format!("{digits}a5"), "\u{e9}".repeat(32));
    for other in [&digits[2..], &longer, &letters, &"xy".repeat(32)] {
        assert_eq!(key(&format!("shop:{other}")), None, "{other}");
    }
    assert_eq!(key(&format!("other:{digits}")), None);
    assert_eq!(key(&name().channel()), None);
}

#[test]
fn a_lease_has_expired_when_less_than_the_ttl_is_left() {
    let stored = StoredClaim { fingerprint: FINGERPRINT, ttl: 30, info: None };
    assert!(!stored.has_expired(30) && stored.has_expired(29));
}

/// Redis says of a key that less than a millisecond is left to it: 0. It says of one without an expiry: -1.
#[test]
fn a_claim_has_an_age_until_its_last_millisecond() {
    let claim = encode_claim(&name(), OWNER, TTL, &FINGERPRINT, None);
    assert!(crate::inspect::decode(&name(), &claim, 0).is_ok());
    assert!(crate::inspect::decode(&name(), &claim, -1).is_err());
}

#[test]
fn times_are_rounded_up_and_never_too_long_or_zero() {
    assert_eq!(milliseconds(Duration::from_micros(29_001)), 30);
    assert_eq!(milliseconds(Duration::ZERO), 1);
    // The longest TTL that a policy takes.
    assert_eq!(milliseconds(Duration::from_secs(36_500 * 86_400)), 36_500 * 86_400_000);
    let expiry = claim_expiry(Duration::MAX, Duration::MAX);
    assert!(expiry == 2 * milliseconds(Duration::MAX) && i64::try_from(expiry).is_ok());
    for (lease, ttl, expiry) in [(30, 1000, 1030), (1000, 30, 1030), (30, 0, 31)] {
        assert_eq!(claim_expiry(Duration::from_millis(lease), Duration::from_millis(ttl)), expiry);
    }
}

#[test]
fn a_value_is_read_under_its_own_name_and_as_it_was_written_only() {
    let written = Record::new(FINGERPRINT, Bytes::from_static(b"the content"));
    let record = encode_record(&KEY, &name(), OWNER, &written);
    let summary = written.tombstone();
    let head = RECORD_HEAD + CHECKSUM + summary.bytes().len();
    for value in [record.clone(), record.slice(..head)] {
        let Some(Decoded::Record(stored)) = decode(&name(), &value) else { panic!("a record, or its head") };
        assert_eq!(stored.summary, summary);
        assert_eq!(stored.decode(&KEY, &name()).ok(), (value.len() > head).then(|| written.clone()));
    }
    let claim = encode_claim(&name(), OWNER, TTL, &FINGERPRINT, Some(&info()));
    let stored = StoredClaim { fingerprint: FINGERPRINT, ttl: 3_600_000, info: Some(info()) };
    assert_eq!(decode(&name(), &claim), Some(Decoded::Claim(stored)));
    for (value, covered) in [(claim.clone(), claim.len()), (record, head)] {
        assert_eq!(decode(&Name::new("other", &KEY), &value), None, "under another name");
        for at in 0..covered {
            assert_eq!(decode(&name(), &value.slice(..at)), None, "cut at {at}");
            for bit in 0..8 {
                let mut damaged = value.to_vec();
                damaged[at] ^= 1 << bit;
                assert_eq!(decode(&name(), &damaged.into()), None, "bit {bit} of byte {at}");
            }
        }
    }
    assert_eq!(decode(&name(), &[&claim[..], b"x"].concat().into()), None, "with something after it");
}

#[test]
fn a_claim_whose_info_cannot_be_read_is_a_claim() {
    let plain = encode_claim(&name(), OWNER, TTL, &FINGERPRINT, None);
    let (head, _) = plain.split_at(CLAIM_HEAD);
    let rest = [FINGERPRINT.as_bytes(), &b"unknown"[..]].concat();
    let value = [head, &name().checksum([head, &rest]), &rest].concat();
    let stored = StoredClaim { fingerprint: FINGERPRINT, ttl: 3_600_000, info: None };
    assert_eq!(decode(&name(), &value.into()), Some(Decoded::Claim(stored)));
}

#[test]
fn the_scripts_know_the_layout_of_a_value() {
    for (script, line) in [
        (include_str!("../scripts/complete.lua"), format!("local RECORD_START = {RECORD_START}\n")),
        (include_str!("../scripts/begin.lua"), format!("string.sub(found, {}, {RECORD_START})", RECORD_START - 31)),
        (include_str!("../scripts/begin.lua"), format!("#found > {CLAIM_HEAD} ")),
        (include_str!("../scripts/begin.lua"), format!("struct.unpack('>I8', found, {})", CLAIM_HEAD - 7)),
        (include_str!("../scripts/look.lua"), format!("string.byte(start, {}) * 256", RECORD_HEAD - 1)),
        (include_str!("../scripts/look.lua"), format!("0, {} + summary)", RECORD_HEAD + CHECKSUM - 1)),
    ] {
        assert!(script.contains(&line), "{line}");
    }
}
