//! The controller's configuration.

use serde::de::DeserializeOwned;

use crate::Error;

/// `spec.config` of the `WasmController`. It is part of the revision: another config is another revision.
#[derive(Clone, Debug)]
pub struct Config(String);

impl Config {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// Reads the config as the author's type; an absent one reads as `{}`, so give the fields defaults.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let text = if self.0 == "null" { "{}" } else { &self.0 };
        serde_json::from_str(text)
            .map_err(|error| Error::terminal(format!("cannot read the config: {error}")))
    }
}
