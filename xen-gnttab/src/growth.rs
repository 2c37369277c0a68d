//! How the table grows while others use it, apart from where its parts live, so that the same code runs on loom's model of
//! memory.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

/// A table whose first so many references are there.
pub trait Grows {
    /// Why it cannot grow.
    type Error;
    /// Takes the turn to grow. False: somebody else has it.
    fn begin(&self) -> bool;
    /// Gives the turn back.
    fn end(&self);
    /// How many references there are. All that [`fill`](Self::fill) made of them is visible afterwards.
    fn count(&self) -> u32;
    /// Makes the references from `first` on; returns how many. What a try that fails leaves behind the next one uses.
    fn fill(&self, first: u32) -> Result<u32, Self::Error>;
    /// Says that there are so many references.
    fn publish(&self, count: u32);
    /// Lets those from `first` on, so many, be taken.
    fn hand_out(&self, first: u32, count: u32);
}

/// Makes more references. One caller at a time; `None` for another, who is sent away instead of waiting: it may be an interrupt
/// handler that the first one cannot get past.
pub fn grow<T: Grows>(table: &T) -> Option<Result<(), T::Error>> {
    /// The turn, given back however it ends.
    struct Turn<'a, T: Grows>(&'a T);
    impl<T: Grows> Drop for Turn<'_, T> {
        fn drop(&mut self) {
            self.0.end();
        }
    }
    if !table.begin() {
        return None;
    }
    let _turn = Turn(table);
    let first = table.count();
    Some(table.fill(first).map(|count| {
        // Whoever sees the number sees what there is behind it, and whoever is handed a reference sees the number.
        table.publish(first + count);
        table.hand_out(first, count);
    }))
}
