//! The effective settings: flag before environment before file before default.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::knobs::Knob;

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Env,
    /// The settings file.
    File,
    /// Nobody set it.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Flag => "flag",
            Source::Env => "environment",
            Source::File => "file",
            Source::Default => "default",
        })
    }
}

/// A setting that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The file is not TOML.
    #[error("settings file: {0}")]
    Syntax(String),
    /// A key that no setting has.
    #[error("settings file: unknown key {key:?}; known are {known}")]
    UnknownKey {
        /// As written.
        key: String,
        /// All keys.
        known: String,
    },
    /// A table, list or date where a value belongs.
    #[error("settings file: {key}: must be text, a number or true or false")]
    Shape {
        /// As written.
        key: String,
    },
    /// The value does not parse.
    #[error("{name} from the {from}: {value:?}: {why}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Who set it.
        from: Source,
        /// As written.
        value: String,
        /// What is wrong.
        why: String,
    },
}

/// Values by name. What nobody set and has no default is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<&'static str, (String, Source)>,
}

impl Settings {
    /// Resolves `knobs`; `flag` and `env` give what the command line and the environment hold, `file` is TOML.
    ///
    /// # Errors
    /// A file that is not TOML, or with a key that no knob has.
    pub fn resolve<'k>(
        knobs: impl Iterator<Item = &'k Knob> + Clone,
        flag: impl Fn(&str) -> Option<String>,
        env: impl Fn(&str) -> Option<String>,
        file: Option<&str>,
    ) -> Result<Self, SettingsError> {
        let mut from_file = BTreeMap::new();
        let table: toml::Table = match file {
            Some(text) => text.parse().map_err(|e: toml::de::Error| SettingsError::Syntax(e.to_string()))?,
            None => toml::Table::new(),
        };
        for (key, value) in table {
            if !knobs.clone().any(|k| k.name == key) {
                let known = knobs.clone().map(|k| k.name).collect::<Vec<_>>().join(", ");
                return Err(SettingsError::UnknownKey { key, known });
            }
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(n) => n.to_string(),
                toml::Value::Float(x) => x.to_string(),
                toml::Value::Boolean(b) => b.to_string(),
                _ => return Err(SettingsError::Shape { key }),
            };
            from_file.insert(key, text);
        }
        let mut values = BTreeMap::new();
        for knob in knobs {
            let found = flag(knob.name)
                .map(|v| (v, Source::Flag))
                .or_else(|| env(knob.env).filter(|v| !v.is_empty()).map(|v| (v, Source::Env)))
                .or_else(|| from_file.remove(knob.name).map(|v| (v, Source::File)))
                .or_else(|| knob.default.map(|v| (v.to_owned(), Source::Default)));
            if let Some(found) = found {
                values.insert(knob.name, found);
            }
        }
        Ok(Settings { values })
    }

    /// All that are set, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str, Source)> {
        self.values.iter().map(|(name, (value, source))| (*name, value.as_str(), *source))
    }

    /// A value read by `parse`.
    ///
    /// # Errors
    /// What `parse` says, with the name and source of the value.
    pub fn read<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        let Some((value, from)) = self.values.get(name) else { return Ok(None) };
        let wrong = |why| SettingsError::Value { name, from: *from, value: value.clone(), why };
        parse(value).map(Some).map_err(wrong)
    }

    /// A value of a type that reads itself.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn parse<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, SettingsError>
    where
        T::Err: fmt::Display,
    {
        self.read(name, |text| text.parse().map_err(|e: T::Err| e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::knobs::{ENGINE, SERVE};

    fn resolve(flag: &[(&str, &str)], env: &[(&str, &str)], file: &str) -> Result<Settings, SettingsError> {
        let get = |pairs: &[(&str, &str)], name: &str| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        Settings::resolve(
            ENGINE.iter().chain(SERVE),
            |name| get(flag, name),
            |name| get(env, name),
            Some(file),
        )
    }

    fn port(settings: &Settings) -> (&str, Source) {
        settings.iter().find(|(name, ..)| *name == "port").map(|(_, v, s)| (v, s)).unwrap()
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let env = [("LATHE_PORT", "2")];
        let all = resolve(&[("port", "1")], &env, "port = 3").unwrap();
        assert_eq!(port(&all), ("1", Source::Flag));
        assert_eq!(port(&resolve(&[], &env, "port = 3").unwrap()), ("2", Source::Env));
        assert_eq!(port(&resolve(&[], &[], "port = 3").unwrap()), ("3", Source::File));
        assert_eq!(port(&resolve(&[], &[], "").unwrap()), ("8000", Source::Default));
        assert_eq!(port(&resolve(&[], &[("LATHE_PORT", "")], "").unwrap()), ("8000", Source::Default));
    }

    #[test]
    fn a_file_is_held_to_the_table() {
        let error = resolve(&[], &[], "prot = 1").unwrap_err();
        assert!(matches!(&error, SettingsError::UnknownKey { key, .. } if key == "prot"), "{error}");
        assert!(error.to_string().contains("drain-timeout"), "{error}");
        assert!(matches!(resolve(&[], &[], "port = [1]").unwrap_err(), SettingsError::Shape { .. }));
        assert!(matches!(resolve(&[], &[], "port = ").unwrap_err(), SettingsError::Syntax(_)));
    }

    #[test]
    fn a_bad_value_names_setting_and_source() {
        let error = resolve(&[], &[], "port = \"x\"").unwrap().parse::<u16>("port").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("port from the file: \"x\""), "{text}");
        assert_eq!(resolve(&[], &[], "").unwrap().parse::<u16>("threads").unwrap(), None);
    }
}
