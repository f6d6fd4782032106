//! W3C Trace Context: the trace that a request says it belongs to.

/// A caller's span, as `traceparent` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace_id: u128,
    pub span_id: u64,
    /// Those of [`SAMPLED`] and [`RANDOM`] that are set.
    pub flags: u8,
}

/// The caller may have recorded its span.
pub(super) const SAMPLED: u8 = 1;
/// The trace's id is random, at least in its last 7 bytes.
pub(super) const RANDOM: u8 = 2;

/// Bytes of a `traceparent` of version 00: its version, trace, span and flags in hexadecimal, with dashes between.
const LENGTH: usize = 55;

impl Parent {
    /// Reads a `traceparent`. `None` where it is none: then the request begins a trace. Of a version after 00 the parts that
    /// version 00 has are read, and more may follow them.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let part = |from: usize, to: usize| text.get(from..to).and_then(hex);
        let version = part(0, 2).filter(|version| *version != 0xff)?;
        let ends = if version == 0 { text.len() == LENGTH } else { text.get(LENGTH).is_none_or(|next| *next == b'-') };
        let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
        let trace_id = part(3, 35).filter(|id| *id != 0 && ends && dashes)?;
        let span_id = part(36, 52).and_then(|id| u64::try_from(id).ok()).filter(|id| *id != 0)?;
        let flags = part(53, 55).and_then(|flags| u8::try_from(flags).ok())?;
        Some(Self { trace_id, span_id, flags: flags & (SAMPLED | RANDOM) })
    }
}

/// A number in hexadecimal, of digits in small letters alone.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// What names a span to others.
pub(super) fn traceparent(trace_id: u128, span_id: u64, flags: u8) -> String {
    format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<(u128, u64, u8)> {
        Parent::parse(text.as_bytes()).map(|parent| (parent.trace_id, parent.span_id, parent.flags))
    }

    #[test]
    fn a_traceparent_is_read() {
        let (trace, span) = (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331);
        for (flags, expected) in [("01", 1), ("00", 0), ("03", 3), ("ff", 3), ("fc", 0)] {
            assert_eq!(parse(&format!("{}{flags}", &GOOD[..53])), Some((trace, span, expected)), "{flags}");
        }
        for later in ["", "-", "-what-comes-then"] {
            assert_eq!(parse(&format!("cc{}{later}", &GOOD[2..])), Some((trace, span, 1)), "{later}");
        }
    }

    #[test]
    fn what_is_none_is_passed_over() {
        let zero_trace = format!("00-{:032x}-b7ad6b7169203331-01", 0);
        let zero_span = format!("{}{:016x}-01", &GOOD[..36], 0);
        let more = format!("{GOOD}-more");
        let (unknown, glued) = (format!("ff{}", &GOOD[2..]), format!("01{}x", &GOOD[2..]));
        let (capitals, dots) = (GOOD.to_uppercase(), GOOD.replace('-', "."));
        let spaced = format!(" {GOOD}");
        for wrong in [&zero_trace, &zero_span, &more, &unknown, &glued, &capitals, &dots, &spaced] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for cut in 0..GOOD.len() {
            assert_eq!(parse(&GOOD[..cut]), None, "{cut}");
            assert_eq!(parse(&format!("01{}", &GOOD[2..])[..cut]), None, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_read_again(trace_id in 1u128.., span_id in 1u64.., flags in 0u8..4) {
            let text = traceparent(trace_id, span_id, flags);
            prop_assert_eq!(Parent::parse(text.as_bytes()), Some(Parent { trace_id, span_id, flags }));
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..70)) {
            prop_assert!(Parent::parse(&bytes).is_none_or(|found| found.trace_id != 0 && found.span_id != 0));
        }
    }
}
