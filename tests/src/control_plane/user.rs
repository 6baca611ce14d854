//! The people of every instance, each with a random token. The host under test is none of them: it
//! gets a `ServiceAccount`, its own RBAC and a requested token, as in production.

use std::path::Path;

use anyhow::{Context, Result};
use ring::rand::SecureRandom;

/// A user that every instance knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// May do everything (`system:masters`).
    Admin,
    /// A member of `team-a`, without any rights at first.
    Alice,
    /// A member of `team-b`, without any rights at first.
    Bob,
    /// What the controller manager runs as.
    ControllerManager,
}

impl User {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Alice, Self::Bob, Self::ControllerManager];

    /// The stem of the kubeconfig's file name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Alice => "alice",
            Self::Bob => "bob",
            Self::ControllerManager => "kube-controller-manager",
        }
    }

    /// The name the server knows the user by, which RBAC and audit lines show.
    pub const fn username(self) -> &'static str {
        match self {
            Self::ControllerManager => "system:kube-controller-manager",
            user => user.name(),
        }
    }

    /// The one group of the user; RBAC knows the controller manager by its name alone.
    pub const fn group(self) -> Option<&'static str> {
        match self {
            Self::Admin => Some("system:masters"),
            Self::Alice => Some("team-a"),
            Self::Bob => Some("team-b"),
            Self::ControllerManager => None,
        }
    }
}

/// The users' tokens, as the server's token file has them.
#[derive(Debug)]
pub(super) struct Tokens(String);

impl Tokens {
    const FILE: &str = "tokens.csv";

    /// New random tokens, written to `folder`.
    pub(super) fn write(folder: &Path) -> Result<Self> {
        // Token, name, uid, groups.
        let lines = User::ALL.map(|user| {
            let (name, group) = (user.username(), user.group().unwrap_or_default());
            Ok(format!("{},{name},{name},{group}\n", random_token()?))
        });
        let text = lines.into_iter().collect::<Result<String>>()?;
        std::fs::write(folder.join(Self::FILE), &text).context("writing the token file")?;
        Ok(Self(text))
    }

    /// Those that `write` left.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(folder.join(Self::FILE));
        Ok(Self(text.context("reading the token file (a given cluster has none)")?))
    }

    pub(super) fn of(&self, user: User) -> Result<&str> {
        self.0
            .lines()
            .filter_map(|line| line.split_once(','))
            .find(|(_, rest)| rest.split(',').next() == Some(user.username()))
            .map(|(token, _)| token)
            .with_context(|| format!("the token file has no {}", user.username()))
    }
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_token_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let written = Tokens::write(folder.path()).unwrap();
        let read = Tokens::read(folder.path()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for user in User::ALL {
            assert_eq!(written.of(user).unwrap(), read.of(user).unwrap());
            seen.insert(read.of(user).unwrap().to_owned());
        }
        assert_eq!(seen.len(), User::ALL.len());
    }
}
