//! What others sent, in our messages.

/// At most 80 characters of `text`, so that a message stays short whatever it quotes.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain(['…']).collect() }
}

/// `text`, and where what it quotes makes it longer than 2,048 bytes, its start and its end.
pub(crate) fn bounded(text: String) -> String {
    const MOST: usize = 2048;
    const END: usize = 512;
    if text.len() <= MOST {
        return text;
    }
    let start = text.floor_char_boundary(MOST - END - '…'.len_utf8());
    let end = text.ceil_char_boundary(text.len() - END);
    [&text[..start], "…", &text[end..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_keeps_its_start_and_its_end() {
        assert_eq!(bounded("found x".to_owned()), "found x");
        for quoted in ["a", "é", "…", "🚢"] {
            let long = format!("found {}, expected less", quoted.repeat(1 << 20));
            let short = bounded(long);
            assert!((2030..=2048).contains(&short.len()), "{}", short.len());
            assert!(short.starts_with("found ") && short.ends_with(", expected less"), "{short}");
        }
    }
}
