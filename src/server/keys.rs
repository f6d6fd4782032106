//! API keys: who may use the public listeners.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::{Error, Kind};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Rejected;

/// The environment variable that holds keys, separated by commas. There is no option of that kind: other users of a
/// machine see a command's options.
pub const KEYS_VARIABLE: &str = "BLOCKDROP_API_KEYS";

/// Keys that are taken. Where there are none, everybody may come in. Clones share them, as they are [read
/// again](Self::read_again).
///
/// Only their SHA-256 is kept: what is compared is of one length, and a key is nowhere to be printed.
#[derive(Clone, Default)]
pub struct Keys(Arc<Known>);

#[derive(Default)]
struct Known {
    file: Option<PathBuf>,
    /// Those that are not in the file.
    listed: Vec<Hash>,
    all: RwLock<Vec<Hash>>,
}

type Hash = [u8; 32];

/// Keys that cannot be used. None is ever quoted.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{}: cannot be read: {reason}", file.display())]
    Read { file: PathBuf, reason: std::io::Error },
    #[error("{place}: found no key, expected at least one")]
    Empty { place: String },
    #[error("{place}: found {found}, expected at least {SHORTEST} visible ASCII characters")]
    Key { place: String, found: String },
}

/// Characters of a key, at least.
const SHORTEST: usize = 16;

/// Bytes of a file of keys, at most.
const LARGEST_FILE: u64 = 1 << 20;

impl Keys {
    /// The keys in `file`, one a line, where blank lines and those that begin with `#` are passed over, and those in
    /// `listed`, separated by commas (what [`KEYS_VARIABLE`] holds; nothing is as if it were not set).
    ///
    /// # Errors
    /// The file cannot be read, either holds no key, or one of them is too short or has characters that a header cannot
    /// carry or people cannot see; all that is wrong.
    pub fn read(file: Option<&Path>, listed: Option<&[u8]>) -> Result<Self, Vec<KeysError>> {
        let in_file = file.map_or_else(|| Ok(Vec::new()), of_file);
        let listed = listed.filter(|listed| !listed.is_empty()).map_or_else(|| Ok(Vec::new()), of_list);
        match (in_file, listed) {
            (Ok(in_file), Ok(listed)) => {
                let all = RwLock::new([in_file, listed.clone()].concat());
                Ok(Self(Arc::new(Known { file: file.map(Path::to_path_buf), listed, all })))
            }
            (in_file, listed) => Err([in_file.err(), listed.err()].into_iter().flatten().flatten().collect()),
        }
    }

    /// Takes the keys that are in the file now, and those that were listed. Returns whether there is a file.
    ///
    /// # Errors
    /// As for [`read`](Self::read); the keys stay as they were then.
    pub fn read_again(&self) -> Result<bool, Vec<KeysError>> {
        let Some(file) = &self.0.file else { return Ok(false) };
        let all = [of_file(file)?, self.0.listed.clone()].concat();
        *self.0.all.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(true)
    }

    fn all(&self) -> RwLockReadGuard<'_, Vec<Hash>> {
        self.0.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Whether a request with these headers may come in: `Authorization: Bearer KEY`.
    ///
    /// # Errors
    /// It has no key, or another one.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        if self.all().is_empty() {
            return Ok(());
        }
        let refused = |found: &str| {
            let message = format!("{found}, expected the header Authorization: Bearer KEY with a key of this server");
            Error::new(Kind::Unauthenticated, message)
        };
        let mut found = headers.get_all(header::AUTHORIZATION).iter();
        let (first, another) = (found.next(), found.next());
        let found = first.ok_or_else(|| refused("found no API key"))?;
        if another.is_some() {
            return Err(refused("found several authorizations"));
        }
        let key = bearer(found.as_bytes()).ok_or_else(|| refused("found another kind of authorization"))?;
        let found: Hash = Sha256::digest(key).into();
        // All of them are compared, whichever it is.
        let known = self.all().iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&found));
        if known.into() { Ok(()) } else { Err(refused("found an unknown API key")) }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Keys({} of them)", self.count())
    }
}

/// The keys in a file.
fn of_file(file: &Path) -> Result<Vec<Hash>, Vec<KeysError>> {
    let shown = file.display();
    let text = read(file).map_err(|error| vec![error])?;
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.map(|(at, line)| (at, line.strip_suffix(b"\r").unwrap_or(line)));
    let keys = lines.filter(|(_, line)| !is_blank(line) && !line.starts_with(b"#"));
    hashed(&shown.to_string(), keys.map(|(at, line)| (format!("{shown}: line {}", at + 1), line)))
}

/// The keys in a list that is separated by commas.
fn of_list(listed: &[u8]) -> Result<Vec<Hash>, Vec<KeysError>> {
    let keys = listed.split(|&byte| byte == b',').enumerate().filter(|(_, key)| !is_blank(key));
    hashed(KEYS_VARIABLE, keys.map(|(at, key)| (format!("{KEYS_VARIABLE}: key {}", at + 1), key)))
}

/// The hashes of `keys`, each with its place, or all that is wrong with them.
fn hashed<'k>(place: &str, keys: impl Iterator<Item = (String, &'k [u8])>) -> Result<Vec<Hash>, Vec<KeysError>> {
    let (mut hashes, mut errors) = (Vec::new(), Vec::new());
    for (place, key) in keys {
        match check(key) {
            Ok(()) => hashes.push(Sha256::digest(key).into()),
            Err(found) => errors.push(KeysError::Key { place, found }),
        }
    }
    if hashes.is_empty() && errors.is_empty() {
        errors.push(KeysError::Empty { place: place.to_owned() });
    }
    if errors.is_empty() { Ok(hashes) } else { Err(errors) }
}

fn read(file: &Path) -> Result<Vec<u8>, KeysError> {
    let failed = |reason| KeysError::Read { file: file.to_path_buf(), reason };
    let mut text = Vec::new();
    // Opening a pipe would wait for somebody who writes to it; of a directory the system says what it is.
    let kind = std::fs::metadata(file).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(failed(std::io::Error::other("found no regular file, expected a regular file")));
    }
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(LARGEST_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(failed(std::io::Error::other(format!("it has more than {LARGEST_FILE} bytes"))));
    }
    Ok(text)
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// What is wrong with a key, without the key.
fn check(key: &[u8]) -> Result<(), String> {
    if !key.iter().all(u8::is_ascii_graphic) {
        return Err("a key with a space, a control character or one beyond ASCII in it".to_owned());
    }
    if key.len() < SHORTEST { Err(format!("a key of {} characters", key.len())) } else { Ok(()) }
}

/// The key of a `Bearer` authorization.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let space = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, key) = value.split_at(space);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| key.trim_ascii_start())
}

/// [`Keys`] at the door of a listener.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) keys: Keys,
    pub(super) metrics: Arc<Metrics>,
    /// Whether a path is open to everybody.
    pub(super) open: fn(&str) -> bool,
}

impl Guard {
    /// Whether a request may come in; one that may not is counted.
    ///
    /// # Errors
    /// It has no key, or another one, and its path is not open.
    pub(super) fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), Error> {
        if (self.open)(path) {
            return Ok(());
        }
        self.keys.check(headers).inspect_err(|_| self.metrics.reject(Rejected::Unauthenticated))
    }
}

/// Turns requests away that [`Guard::check`] does, before anything of their bodies is read.
pub(super) async fn require(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef";
    const OTHER: &str = "ghijklmnopqrstuvwxyz";

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn wrong(file: Option<&Path>, listed: Option<&[u8]>) -> String {
        let errors = Keys::read(file, listed).expect_err("no keys");
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn is_let_in(keys: &Keys, authorization: &str) -> bool {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())]);
        keys.check(&headers).is_ok()
    }

    #[test]
    fn keys_of_both_places_add_up() {
        let lines = file(format!("# of the page\r\n{KEY}\r\n\n  \n#{OTHER}\n").as_bytes());
        let of_file = Keys::read(Some(lines.path()), None).unwrap();
        assert_eq!(of_file.count(), 1);
        let both = Keys::read(Some(lines.path()), Some(OTHER.as_bytes())).unwrap();
        assert_eq!(both.count(), 2);
        for key in [KEY, OTHER] {
            assert!(is_let_in(&both, &format!("Bearer {key}")), "{key}");
        }
        assert!(!is_let_in(&of_file, &format!("Bearer {OTHER}")), "what is commented out is no key");
        let listed = Keys::read(None, Some(format!("{KEY},,{OTHER},").as_bytes())).unwrap();
        assert_eq!(listed.count(), 2);
        assert_eq!(Keys::read(None, None).unwrap().count(), 0);
        assert_eq!(Keys::read(None, Some(b"")).unwrap().count(), 0);
    }

    #[test]
    fn a_key_is_compared_as_it_is() {
        let keys = Keys::read(None, Some(KEY.as_bytes())).unwrap();
        for authorization in ["Bearer", "bearer", "BEARER"] {
            assert!(is_let_in(&keys, &format!("{authorization} {KEY}")), "{authorization}");
        }
        assert!(is_let_in(&keys, &format!("Bearer   {KEY}")));
        let upper = KEY.to_uppercase();
        for key in [&KEY[..15], &format!("{KEY}0"), &upper, "", &format!("{KEY},{KEY}"), &format!("{KEY} {KEY}")] {
            assert!(!is_let_in(&keys, &format!("Bearer {key}")), "{key}");
        }
        for authorization in [KEY, &format!("Basic {KEY}"), &format!("Bearer:{KEY}"), "Bearer", ""] {
            assert!(!is_let_in(&keys, authorization), "{authorization}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert!(Keys::default().check(&HeaderMap::new()).is_ok(), "without keys everybody may come in");
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_never_quoted() {
        let bad = file(format!("{KEY}\nshort\n\nwith a space in it\n{OTHER}\u{e9}\n").as_bytes());
        let said = wrong(Some(bad.path()), Some(b"tiny,0123456789abcde\x7f"));
        let name = bad.path().display();
        let expected = [
            format!("{name}: line 2: found a key of 5 characters, expected at least 16 visible ASCII characters"),
            format!("{name}: line 4: found a key with a space"),
            format!("{name}: line 5: found a key with a space"),
            "BLOCKDROP_API_KEYS: key 1: found a key of 4 characters".to_owned(),
            "BLOCKDROP_API_KEYS: key 2: found a key with a space, a control character".to_owned(),
        ];
        assert_eq!(said.lines().count(), expected.len(), "{said}");
        for (line, start) in said.lines().zip(expected) {
            assert!(line.starts_with(&start), "{line}");
        }
        for key in [KEY, OTHER, "short", "with a space in it", "tiny"] {
            assert!(!said.contains(key), "{said}");
        }
        let empty = file(b"# nothing\n\n");
        assert!(wrong(Some(empty.path()), None).ends_with(": found no key, expected at least one"));
        assert!(wrong(None, Some(b" , ")).starts_with("BLOCKDROP_API_KEYS: found no key"));
        assert!(wrong(Some(Path::new("/no/such/file")), None).starts_with("/no/such/file: cannot be read: "));
        assert!(wrong(Some(Path::new("/")), None).starts_with("/: cannot be read: "));
        let large = file(&vec![b'x'; (1 << 20) + 1]);
        assert!(wrong(Some(large.path()), None).ends_with("it has more than 1048576 bytes"));
    }

    #[test]
    fn keys_are_read_again_by_all_who_have_them() {
        let lines = file(KEY.as_bytes());
        const LISTED: &str = "0000000000000000";
        let keys = Keys::read(Some(lines.path()), Some(LISTED.as_bytes())).unwrap();
        let elsewhere = keys.clone();
        let let_in = |key: &str| is_let_in(&elsewhere, &format!("Bearer {key}"));
        std::fs::write(lines.path(), OTHER).unwrap();
        assert!(keys.read_again().unwrap());
        assert_eq!([KEY, OTHER, LISTED].map(let_in), [false, true, true]);
        // What cannot be used leaves them in force.
        for broken in ["", "# none\n", "short\n", &format!("{KEY}\nshort")] {
            std::fs::write(lines.path(), broken).unwrap();
            assert_eq!(keys.read_again().unwrap_err().len(), 1, "{broken:?}");
            assert_eq!([KEY, OTHER, LISTED].map(let_in), [false, true, true]);
        }
        std::fs::remove_file(lines.path()).unwrap();
        assert_eq!(keys.read_again().unwrap_err().len(), 1);
        assert_eq!(keys.count(), 2);
        assert!(!Keys::default().read_again().unwrap(), "there is no file");
    }

    #[test]
    fn keys_are_not_printed() {
        let keys = Keys::read(None, Some(KEY.as_bytes())).unwrap();
        assert_eq!(format!("{keys:?}"), "Keys(1 of them)");
    }
}
