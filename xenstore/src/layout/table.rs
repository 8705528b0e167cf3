//! Tables of nodes: one form for writing the tree and for printing what it is.

use super::arrange::{Item, arrange};
use super::{Batch, Pairs, Path};
use crate::perms::{DomId, Perms};
use std::fmt::Write;

/// Which tree a node belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The domain's home.
    Domain,
    /// What outlives a domain: the VM.
    Vm,
    /// The toolstack's own memory of the domain, or of the device. Guests cannot read it, so it can be trusted.
    Private,
    /// A device as the guest sees it.
    Frontend,
    /// A device as its backend sees it. Values written here are copied to the private side.
    Backend,
}

/// Whose node it is; the names are those of [`Perms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// As its parent.
    Inherit,
    /// As the parent of the root of its side, which it makes: a directory that comes with a value costs no request of its own
    /// and no event, and has no permissions of its own before.
    Above,
    /// [`Perms::no`]
    No,
    /// [`Perms::ro`]
    Ro,
    /// [`Perms::rw`]
    Rw,
    /// [`Perms::fe`]
    Fe,
    /// [`Perms::fero`]
    FeRo,
    /// [`Perms::be`]
    Be,
}

/// Who gives a node its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// The guest's kernel or its agent: hostile bytes.
    Guest,
    /// The backend's driver.
    Backend,
    /// The toolstack, later.
    Toolstack,
    /// A daemon of the control domain.
    Daemon,
}

/// What is in a node.
pub enum Content<T> {
    /// Nothing; it is there to have children.
    Directory,
    /// A value; `None` leaves the node out.
    Value {
        /// The value.
        of: fn(&T) -> Option<Vec<u8>>,
        /// The value for people.
        shown: &'static str,
    },
    /// Several nodes, each named relative to the side's root.
    Many {
        /// The nodes.
        of: fn(&T) -> Pairs,
        /// The values for people.
        shown: &'static str,
    },
    /// Not written with the layout: listed because others rely on it.
    Later {
        /// Who writes it.
        by: Writer,
        /// The value for people.
        shown: &'static str,
    },
}

/// One line of a table.
pub struct Node<T> {
    /// Which tree.
    pub side: Side,
    /// Path below the tree's root; empty for the root itself.
    pub name: &'static str,
    /// Whose it is.
    pub rule: Rule,
    /// What is in it.
    pub content: Content<T>,
    /// Who reads it, and what for.
    pub about: &'static str,
    /// Whether the toolstack keeps a copy of a backend's value on the private side.
    copied: bool,
}

impl<T> Node<T> {
    pub(super) const fn dir(side: Side, name: &'static str, rule: Rule, about: &'static str) -> Self {
        Self { side, name, rule, content: Content::Directory, about, copied: false }
    }

    pub(super) const fn value(
        side: Side,
        name: &'static str,
        shown: &'static str,
        of: fn(&T) -> Option<Vec<u8>>,
        about: &'static str,
    ) -> Self {
        Self { side, name, rule: Rule::Inherit, content: Content::Value { of, shown }, about, copied: false }
    }

    pub(super) const fn many(
        side: Side,
        name: &'static str,
        shown: &'static str,
        of: fn(&T) -> Pairs,
        about: &'static str,
    ) -> Self {
        Self { side, name, rule: Rule::Inherit, content: Content::Many { of, shown }, about, copied: true }
    }

    pub(super) const fn later(
        side: Side,
        name: &'static str,
        shown: &'static str,
        by: Writer,
        about: &'static str,
    ) -> Self {
        Self { side, name, rule: Rule::Inherit, content: Content::Later { by, shown }, about, copied: false }
    }

    /// On the private side as well: the toolstack, or `xl`, reads it there.
    pub(super) const fn copied(mut self) -> Self {
        self.copied = true;
        self
    }

    pub(super) const fn owned(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }
}

/// Something that has a table.
pub trait Layout: Sized + 'static {
    /// A heading.
    const TITLE: &'static str;
    /// The table. A directory comes before what is in it.
    const NODES: &'static [Node<Self>];

    /// The root of a tree; only asked for the sides in the table, and for the private one.
    fn root(&self, side: Side) -> Path;

    /// The same for people.
    fn root_shown(side: Side) -> &'static str;

    /// The guest, and the domain that serves it.
    fn parties(&self) -> (DomId, DomId);
}

impl Rule {
    /// The permissions for guest `d` and backend `b`; `None` to leave the parent's.
    pub fn perms(self, d: DomId, b: DomId) -> Option<Perms> {
        match self {
            Self::Inherit | Self::Above => None,
            Self::No => Some(Perms::no()),
            Self::Ro => Some(Perms::ro(d)),
            Self::Rw => Some(Perms::rw(d)),
            Self::Fe => Some(Perms::fe(d, b)),
            Self::FeRo => Some(Perms::fero(d, b)),
            Self::Be => Some(Perms::be(d, b)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Inherit => "",
            Self::Above => "above",
            Self::No => "no",
            Self::Ro => "ro",
            Self::Rw => "rw",
            Self::Fe => "fe",
            Self::FeRo => "fero",
            Self::Be => "be",
        }
    }
}

/// Appends what makes the nodes of the table on `side`, where there are none of them.
pub(super) fn write_side<T: Layout>(layout: &T, side: Side, batch: &mut Batch) {
    arrange(&layout.root(side), items(layout, side), None, batch);
}

/// The nodes of the table on `side`.
pub(super) fn items<T: Layout>(layout: &T, side: Side) -> Vec<Item> {
    let (d, b) = layout.parties();
    let root = layout.root(side);
    let mut items = Vec::new();
    for node in T::NODES.iter().filter(|n| n.side == side) {
        let value = match &node.content {
            Content::Directory => None,
            Content::Value { of, .. } => match of(layout) {
                Some(value) => Some(value),
                None => continue,
            },
            Content::Many { of, .. } => {
                let many = placed(&root, of(layout));
                items.extend(many.map(|(path, value)| Item {
                    path,
                    value: Some(value),
                    perms: None,
                    first: false,
                }));
                continue;
            }
            Content::Later { .. } => continue,
        };
        let path = if node.name.is_empty() { root.clone() } else { root.at(node.name) };
        let first = node.rule == Rule::Above;
        items.push(Item { path, value, perms: node.rule.perms(d, b), first });
    }
    items
}

/// Appends the values of the backend's table that are copied, below the private root: what the toolstack trusts later.
pub(super) fn copy_backend<T: Layout>(layout: &T, batch: &mut Batch) {
    let root = layout.root(Side::Private);
    for node in T::NODES.iter().filter(|n| n.side == Side::Backend && n.copied) {
        match &node.content {
            Content::Value { of, .. } => {
                if let Some(value) = of(layout) {
                    batch.write(root.at(node.name), value);
                }
            }
            Content::Many { of, .. } => {
                for (path, value) in placed(&root, of(layout)) {
                    batch.write(path, value);
                }
            }
            Content::Directory | Content::Later { .. } => {}
        }
    }
}

/// A name that only the root makes too long is left out; an overlong value is refused by the encoder.
fn placed(root: &Path, pairs: Pairs) -> impl Iterator<Item = (Path, Vec<u8>)> {
    pairs.into_iter().filter_map(|(name, value)| Some((root.join(name.as_str()).ok()?, value)))
}

pub(super) const LEGEND: &str = "\
`D` is the domain, `U` its VM's UUID, `B` the domain that runs the backend, `N` a number.

| permissions | owner | others |
|---|---|---|
| no | dom0 | nobody |
| ro | dom0 | the guest reads |
| rw | the guest | nobody |
| fe | the guest | the backend reads |
| fero | the backend | the guest reads |
| be | the backend | the guest reads |
| (none) | as the parent | as the parent |
| above | as the parent of the directory | as the parent of the directory |
";

/// The table of one layout as Markdown.
pub fn document<T: Layout>() -> String {
    let mut out = format!(
        "## {}\n\n| node | permissions | value | written by | purpose |\n|---|---|---|---|---|\n",
        T::TITLE
    );
    for node in T::NODES {
        let root = T::root_shown(node.side);
        let path = if node.name.is_empty() { root.to_owned() } else { format!("{root}/{}", node.name) };
        let (shown, by) = match &node.content {
            Content::Directory => ("(directory)", "toolstack"),
            Content::Value { shown, .. } | Content::Many { shown, .. } => (*shown, "toolstack"),
            Content::Later { by, shown } => (*shown, by.name()),
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "| `{path}` | {} | {} | {by} | {} |",
            node.rule.name(),
            escape(shown),
            escape(node.about)
        );
    }
    out
}

fn escape(cell: &str) -> String {
    cell.replace('|', "\\|")
}

impl Writer {
    const fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Backend => "backend",
            Self::Toolstack => "toolstack, later",
            Self::Daemon => "daemon",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Vbd, Vif};
    use super::*;

    fn is_value<T>(node: &Node<T>) -> bool {
        matches!(node.content, Content::Value { .. })
    }

    /// Otherwise a directory would be without its permissions, or a node without its parent's by mistake.
    fn a_value_of_each_of_two_sides_makes_its_root<T: Layout>() {
        let makers: Vec<_> = T::NODES.iter().filter(|node| node.rule == Rule::Above).collect();
        for maker in &makers {
            assert!(is_value(maker) && !maker.name.contains('/'), "{}: {}", T::TITLE, maker.name);
        }
        let sides: Vec<_> = makers.iter().map(|maker| maker.side).collect();
        assert_eq!(sides, [Side::Frontend, Side::Backend], "{}", T::TITLE);
    }

    #[test]
    fn roots_are_made_by_what_is_in_them() {
        a_value_of_each_of_two_sides_makes_its_root::<Vbd>();
        a_value_of_each_of_two_sides_makes_its_root::<Vif>();
    }
}
