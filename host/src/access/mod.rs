//! Who may see and do what: [`needs`] says which rights a manifest needs, [`grant`] what a right is and what gives it, [`authority`]
//! asks the API server for them, [`view`] shows a revision what its account may see.

pub mod authority;
pub mod grant;
pub mod needs;
pub mod view;
