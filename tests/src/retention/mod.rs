//! A model of clusters and repositories for tests of retention: random histories over stores in
//! memory, on a clock that the test drives, where every actor can be stopped before any call
//! to a store. What is promised is kept in the model's own words, and held against the objects
//! that really lie in the stores; nothing here asks the plan under test.

pub mod actor;
pub mod case;
pub mod history;
pub mod promises;
pub mod world;
