//! Whether the API server knows rights to act as an account that are limited to verbs and kinds (Kubernetes 1.36).
//!
//! An older one answers a review of such a right by the rules that it finds, but does not act on them: the host would be
//! told that it may, and refused at each request.

use http::Method;

use super::Authority;
use crate::{
    apiserver::{Call, Error, Identity, Resource},
    model::kind::Kind,
};

impl Authority {
    /// Asks once as `account` and reads of which right the answer speaks. A host that has the old right is not refused,
    /// and needs no other.
    pub async fn knows_limited_impersonation(&self, account: &Identity) -> Result<bool, Error> {
        let Identity::ServiceAccount { namespace, name } = account else { return Ok(true) };
        let accounts = Resource {
            kind: Kind::new("v1", "ServiceAccount"),
            plural: "serviceaccounts".to_owned(),
            namespaced: true,
            has_status: false,
        };
        let path = accounts.path(Some(namespace), Some(name), None)?;
        match self.api.call(Call::new(Method::GET, path).identity(account.clone())).await {
            Err(Error::Refused(status)) if status.code == 403 => {
                Ok(!speaks_of_the_old_right(&status.message))
            }
            Err(error) if error.code().is_none_or(|code| code >= 500 || code == 429) => Err(error),
            _ => Ok(true),
        }
    }
}

fn speaks_of_the_old_right(message: &str) -> bool {
    message.contains("cannot impersonate resource \"serviceaccounts\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_tells_an_older_server_from_a_newer_one() {
        let said = |verb: &str| {
            format!(
                "serviceaccounts \"b\" is forbidden: User \"h\" cannot {verb} resource \"serviceaccounts\" in API group \"\" in the namespace \"n\""
            )
        };
        assert!(speaks_of_the_old_right(&said("impersonate")));
        assert!(!speaks_of_the_old_right(&said("impersonate-on:serviceaccount:get")));
        assert!(!speaks_of_the_old_right(&said("impersonate:serviceaccount")));
        assert!(!speaks_of_the_old_right(&said("get")), "the account itself may not");
    }
}
