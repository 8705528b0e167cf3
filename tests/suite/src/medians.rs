//! Figures that a measuring script in dom0 prints, and their medians.

use std::collections::BTreeMap;
use std::time::Duration;

use xen_host::Host;

/// The median of every measurement by what was measured and who was.
#[derive(Debug)]
pub struct Medians(BTreeMap<(String, String), f64>);

impl Medians {
    /// Runs a script in dom0 that prints `MEASURE what who figure` lines.
    ///
    /// # Panics
    /// When it fails, or does not end within `limit`; with what it printed.
    #[track_caller]
    pub fn of(host: &Host, words: &[&str], limit: Duration) -> Self {
        let mut output = Vec::new();
        let status = host.stream(words, limit, &mut |_, bytes| output.extend_from_slice(bytes));
        let output = String::from_utf8_lossy(&output);
        assert_eq!(status.unwrap_or_else(|error| panic!("{error}: {output}")), 0, "{output}");
        Self::read(&output)
    }

    fn read(output: &str) -> Self {
        let mut figures: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
        for line in output.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            if let ["MEASURE", what, who, figure] = words[..] {
                let figure = figure.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                figures.entry((what.to_owned(), who.to_owned())).or_default().push(figure);
            }
        }
        let median = |mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        Self(figures.into_iter().map(|(key, all)| (key, median(all))).collect())
    }

    /// One of them.
    ///
    /// # Panics
    /// When the script measured no such thing.
    #[track_caller]
    pub fn get(&self, what: &str, who: &str) -> f64 {
        let found = self.0.get(&(what.to_owned(), who.to_owned()));
        *found.unwrap_or_else(|| panic!("{what} of {who} was not measured"))
    }
}

#[cfg(test)]
mod tests {
    use super::Medians;

    #[test]
    fn the_middle_figure_counts_and_other_lines_do_not() {
        let read = Medians::read("MEASURE a x 3\nnoise\nMEASURE a x 100\nMEASURE a x 1\nMEASURE a y 7\n");
        assert_eq!((read.get("a", "x"), read.get("a", "y")), (3.0, 7.0));
    }
}
