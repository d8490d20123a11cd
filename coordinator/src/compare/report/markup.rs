//! Elements of HTML and SVG whose text and attributes are always escaped: there is no way to write markup in a name.

use std::fmt::{self, Write as _};

/// HTML's elements that have no end.
const VOID: [&str; 2] = ["br", "meta"];

/// A part of a page or a picture.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Element(Element),
    /// Text as people are to read it.
    Text(String),
    /// The content of `<style>`, which is not escaped in HTML; never anything from outside this program.
    Style(&'static str),
}

/// An element with its attributes and what is in it.
#[derive(Clone, Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

/// An empty element.
pub(super) fn el(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), children: Vec::new() }
}

impl Element {
    /// The same with an attribute.
    pub(super) fn at(mut self, name: &'static str, value: impl fmt::Display) -> Element {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// The same with a class.
    pub(super) fn class(self, value: &str) -> Element {
        self.at("class", value)
    }

    /// The same with text at its end.
    pub(super) fn text(mut self, text: impl fmt::Display) -> Element {
        self.children.push(Node::Text(text.to_string()));
        self
    }

    /// The same with a style sheet at its end.
    pub(super) fn style(mut self, css: &'static str) -> Element {
        self.children.push(Node::Style(css));
        self
    }

    /// The same with an element at its end.
    pub(super) fn with(mut self, child: Element) -> Element {
        self.children.push(Node::Element(child));
        self
    }

    /// The same with elements at its end.
    pub(super) fn all(mut self, children: impl IntoIterator<Item = Element>) -> Element {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }
}

/// The element's source. It is XML, too, where no element is one of HTML's without an end.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"")?;
            escape(f, value)?;
            f.write_char('"')?;
        }
        f.write_char('>')?;
        for child in &self.children {
            match child {
                Node::Element(element) => write!(f, "{element}")?,
                Node::Text(text) => escape(f, text)?,
                Node::Style(css) => f.write_str(css)?,
            }
        }
        if VOID.contains(&self.name) { Ok(()) } else { write!(f, "</{}>", self.name) }
    }
}

/// Writes text so that neither HTML nor XML takes any of it for markup. What XML forbids even as a reference is shown as
/// `?`.
fn escape(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    for c in text.chars() {
        match c {
            '&' => out.write_str("&amp;")?,
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '"' => out.write_str("&quot;")?,
            '\'' => out.write_str("&#39;")?,
            '\u{fffe}' | '\u{ffff}' => out.write_char('?')?,
            // These turn around what stands beside them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => out.write_char('?')?,
            c if c.is_control() => out.write_char('?')?,
            c => out.write_char(c)?,
        }
    }
    Ok(())
}

/// The tags of a source in their order, checked: each is closed where it must be, and text holds no markup.
///
/// # Panics
/// Where the source is not well-formed.
#[cfg(test)]
pub(super) fn tags(source: &str) -> Vec<String> {
    let (mut open, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for (at, part) in source.split('<').enumerate() {
        let Some((tag, text)) = part.split_once('>').filter(|_| at > 0) else {
            assert!(at == 0 && part.trim().is_empty(), "`{part}` is no tag");
            continue;
        };
        assert!(!text.contains('>'), "`>` in the text `{text}`");
        assert_eq!(tag.matches('"').count() % 2, 0, "an attribute of <{tag}> does not end");
        let name = tag.split(' ').next().unwrap_or_default();
        if name == "!doctype" || VOID.contains(&name) {
            continue;
        }
        if let Some(ended) = name.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(ended), "</{ended}> ends another element");
        } else {
            open.push(name.to_owned());
            all.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "{open:?} are left open");
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_text_or_attributes_becomes_markup() {
        let evil = "<script>alert(\"1\")</script>&'\u{0}\u{1b}\u{202e}";
        let element = el("p").class(evil).text(evil).with(el("br"));
        assert_eq!(
            element.to_string(),
            "<p class=\"&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;???\">\
             &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;???<br></p>"
        );
        assert_eq!(tags(&element.to_string()), ["p"]);
    }
}
