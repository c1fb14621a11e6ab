use super::*;

const KEY: StorageKey = StorageKey::from_bytes([0xa5; 32]);
const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);
const OWNER: Owner = Owner([9; 16]);

fn name() -> Name {
    Name::new("shop", &KEY)
}

fn ends(lease: Duration, ttl: Duration) -> Ends {
    let value = claim(&name(), OWNER, Times::new(lease, ttl), &FINGERPRINT, None);
    match read(&name(), &value) {
        Some(Written::Claim(held)) if held.owner == OWNER && held.fingerprint == FINGERPRINT => held.ends,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_has_the_prefix_and_the_hash_and_shows_eight_digits_of_it() {
    assert_eq!(name().0, format!("shop:{}", "a5".repeat(32)));
    assert_eq!(name().channel(), format!("shop:{}:ended", "a5".repeat(32)));
    assert_eq!(name().short(), "shop:a5a5a5a5*");
}

#[test]
fn a_lease_is_over_when_more_than_it_is_gone_of_the_life_and_not_a_millisecond_before() {
    let (lease, ttl) = (Duration::from_millis(30), Duration::from_millis(1000));
    let after_lease = ends(lease, ttl);
    assert_eq!(Times::new(lease, ttl).lives, 1030);
    for (left, over) in [(1030, false), (1001, false), (1000, false), (999, true), (0, true)] {
        assert_eq!(after_lease.are_over(left, u64::MAX), over, "{left} ms left");
    }
    // More than the whole life is left where the clock was set back: so much the longer it takes.
    assert!(!after_lease.are_over(5000, u64::MAX));
    // The TTL begins when the lease is over, also where it is shorter.
    for (ttl, left) in [(lease, 30), (Duration::from_millis(1), 1), (Duration::ZERO, 1)] {
        assert_eq!(ends(lease, ttl), Ends::Left(left));
    }
    assert_eq!(ends(Duration::from_micros(29_001), ttl), after_lease, "rounded up");
    let longest = Times::new(Duration::MAX, Duration::MAX);
    assert_eq!(longest.lives, 2 * longest.lease, "both are cut, and none to nothing");
}

#[test]
fn a_former_claim_is_over_at_its_time() {
    assert!(!Ends::At(1000).are_over(1, 999) && Ends::At(1000).are_over(i64::MAX, 1000));
}

#[test]
fn a_value_is_read_under_its_own_name_and_as_it_was_written_only() {
    let sealed = Record::new(FINGERPRINT, Bytes::from_static(b"the answer")).seal(&KEY);
    let record = record(&name(), OWNER, &sealed);
    assert_eq!(read(&name(), &record), Some(Written::Record(sealed)));
    let times = Times::new(Duration::from_secs(30), Duration::from_secs(3600));
    let claim = claim(&name(), OWNER, times, &FINGERPRINT, Some(&origin()));
    let Some(Written::Claim(held)) = read(&name(), &claim) else { panic!("it is read") };
    assert_eq!((held.owner, held.fingerprint, held.origin), (OWNER, FINGERPRINT, Some(origin())));
    // What the former version wrote, with a time that has passed.
    let former = former_claim(1_700_000_000_000_000);
    let former_held =
        Held { owner: OWNER, fingerprint: FINGERPRINT, ends: Ends::At(1_700_000_000_000_000), origin: None };
    assert_eq!(read(&name(), &former), Some(Written::Claim(former_held)));
    for (value, covered) in [(claim.clone(), claim.len()), (former.clone(), former.len()), (record, RECORD_START)] {
        assert_eq!(read(&Name::new("other", &KEY), &value), None, "under another name");
        for at in 0..covered {
            assert_eq!(read(&name(), &value.slice(..at)), None, "cut at {at}");
            for bit in 0..8 {
                let mut damaged = value.to_vec();
                damaged[at] ^= 1 << bit;
                assert_eq!(read(&name(), &damaged.into()), None, "bit {bit} of byte {at}");
            }
        }
    }
    for value in [claim, former] {
        assert_eq!(read(&name(), &[&value[..], b"x"].concat().into()), None, "with something after it");
    }
}

/// As a later version may write it.
#[test]
fn a_claim_whose_origin_cannot_be_read_is_a_claim() {
    let times = Times::new(Duration::from_secs(30), Duration::from_secs(3600));
    let plain = claim(&name(), OWNER, times, &FINGERPRINT, None);
    let (head, check) = plain.split_at(CLAIM_HEAD);
    let rest = [FINGERPRINT.as_bytes(), &b"unknown"[..]].concat();
    assert_ne!(check[..CHECK], name().check([head, &rest]));
    let later = [head, &name().check([head, &rest]), &rest].concat();
    let Some(Written::Claim(held)) = read(&name(), &later.into()) else { panic!("it is read") };
    assert_eq!((held.owner, held.fingerprint, held.origin), (OWNER, FINGERPRINT, None));
}

fn origin() -> Origin {
    let endpoint = b"POST /orders";
    Origin::from_bytes([&[1, 0][..], &[5; 8 + 8 + 4], endpoint].concat().into()).unwrap()
}

fn former_claim(end: u64) -> Bytes {
    let head = [FORMER_CLAIM, &OWNER.0, &end.to_be_bytes()].concat();
    let check = name().check([&head, FINGERPRINT.as_bytes()]);
    [&head, &check[..], FINGERPRINT.as_bytes()].concat().into()
}
