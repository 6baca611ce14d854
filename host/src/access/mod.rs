//! Who may see and do what: [`grant`] says which rights a manifest needs, [`authority`] asks the API server for them, [`view`] shows a
//! revision what its account may see.

pub mod authority;
pub mod grant;
pub mod view;
