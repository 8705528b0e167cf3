//! Tables of nodes: one form for writing the tree and for printing what it is.

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
    /// As the parent of the directory that it makes, see [`Node::made_by_next`].
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
    /// The same, see [`Node::made_by_next`].
    MadeByNext,
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

    /// The root of a side, which is made by the value that comes next in the table: a directory that comes with a value costs
    /// no request of its own and no event. That value is made before the directory has its permissions, and has those of the
    /// directory above.
    pub(super) const fn made_by_next(side: Side, rule: Rule, about: &'static str) -> Self {
        Self { side, name: "", rule, content: Content::MadeByNext, about, copied: false }
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

/// Appends the nodes of the table on `side` to `batch`.
pub(super) fn write_side<T: Layout>(layout: &T, side: Side, batch: &mut Batch) {
    let (d, b) = layout.parties();
    let root = layout.root(side);
    let mut made_by_next = None;
    for node in T::NODES.iter().filter(|n| n.side == side) {
        // The names of the other two are for people.
        let path = || if node.name.is_empty() { root.clone() } else { root.at(node.name) };
        match &node.content {
            Content::Directory => batch.mkdir(path()),
            Content::MadeByNext => {
                made_by_next = node.rule.perms(d, b);
                continue;
            }
            Content::Value { of, .. } => match of(layout) {
                Some(value) => batch.write(path(), value),
                None => continue,
            },
            Content::Many { of, .. } => {
                write_pairs(&root, of(layout), batch);
                continue;
            }
            Content::Later { .. } => continue,
        };
        if let Some(perms) = node.rule.perms(d, b) {
            batch.set_perms(path(), perms);
        }
        if let Some(perms) = made_by_next.take() {
            batch.set_perms(root.clone(), perms);
        }
    }
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
            Content::Many { of, .. } => write_pairs(&root, of(layout), batch),
            Content::Directory | Content::MadeByNext | Content::Later { .. } => {}
        }
    }
}

fn write_pairs(root: &Path, pairs: Pairs, batch: &mut Batch) {
    for (name, value) in pairs {
        // A name that only the root makes too long is cut off by the encoder, as is an overlong value.
        if let Ok(path) = root.join(name.as_str()) {
            batch.write(path, value);
        }
    }
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
            Content::Directory | Content::MadeByNext => ("(directory)", "toolstack"),
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
    fn what_makes_a_directory_comes_right_behind_it<T: Layout>() {
        for (at, node) in T::NODES.iter().enumerate() {
            let makes = at > 0 && matches!(T::NODES[at - 1].content, Content::MadeByNext);
            assert_eq!(node.rule == Rule::Above, makes, "{}: {}", T::TITLE, node.name);
            assert!(!makes || is_value(node) && node.side == T::NODES[at - 1].side, "{}", node.name);
        }
        let made = T::NODES.iter().filter(|node| matches!(node.content, Content::MadeByNext));
        assert_eq!(made.count(), 2, "{}", T::TITLE);
    }

    #[test]
    fn directories_are_made_by_what_is_in_them() {
        what_makes_a_directory_comes_right_behind_it::<Vbd>();
        what_makes_a_directory_comes_right_behind_it::<Vif>();
    }
}
