//! API keys.

use subtle::{Choice, ConstantTimeEq};

/// Keys of which every request must show one, if there is any.
#[derive(Clone, Default)]
pub struct Keys {
    keys: Vec<String>,
}

/// A set of keys that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// A file without a key would silently serve everyone.
    #[error("api key file: holds no key; write one per line")]
    Empty,
    /// Such a key cannot stand in a header.
    #[error("api key on line {line}: holds a space or a character outside ASCII")]
    NotAscii {
        /// Line of the file, from 1.
        line: usize,
    },
}

impl Keys {
    /// The keys of a file's text, one per line, and those of the environment.
    ///
    /// # Errors
    /// A file without a key, or a key that cannot stand in a header.
    pub fn new(file: Option<&str>, environment: Option<&str>) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        if let Some(text) = file {
            for (at, line) in text.lines().enumerate() {
                let key = line.trim();
                if key.is_empty() {
                    continue;
                }
                if !key.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(KeyError::NotAscii { line: at + 1 });
                }
                keys.push(key.to_owned());
            }
            if keys.is_empty() {
                return Err(KeyError::Empty);
            }
        }
        keys.extend(environment.map(str::trim).filter(|k| !k.is_empty()).map(str::to_owned));
        Ok(Keys { keys })
    }

    /// No key is asked for.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether an `Authorization` header shows a key. Looks at every key, whichever matches, so that time tells
    /// nothing of their content.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        if self.is_open() {
            return true;
        }
        let Some((scheme, shown)) = authorization.and_then(|value| value.split_at_checked(7)) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let shown = shown.trim_ascii();
        let found = self.keys.iter().fold(Choice::from(0), |found, key| found | key.as_bytes().ct_eq(shown));
        found.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_file_and_environment() {
        let keys = Keys::new(Some("one\n\n two \n"), Some("three")).unwrap();
        for (header, admitted) in [
            (Some("Bearer one"), true),
            (Some("bearer two"), true),
            (Some("Bearer three"), true),
            (Some("Bearer four"), false),
            (Some("Bearer "), false),
            (Some("Bearer onee"), false),
            (Some("Basic one"), false),
            (Some("one"), false),
            (None, false),
        ] {
            assert_eq!(keys.admits(header.map(str::as_bytes)), admitted, "{header:?}");
        }
    }

    #[test]
    fn no_keys_means_open_but_an_empty_file_is_an_error() {
        assert!(Keys::new(None, None).unwrap().admits(None));
        assert!(Keys::new(None, Some("")).unwrap().is_open());
        assert_eq!(Keys::new(Some("\n"), Some("x")).err(), Some(KeyError::Empty));
        assert_eq!(Keys::new(Some("a\nb c"), None).err(), Some(KeyError::NotAscii { line: 2 }));
    }
}
