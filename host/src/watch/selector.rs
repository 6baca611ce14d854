//! Label selectors in the API server's own notation; pure.
