//! What others sent, in our messages.

/// At most 80 characters of `text`, so that a message stays short whatever it quotes.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain(['…']).collect() }
}
