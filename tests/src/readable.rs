//! What every page of ours must be: readable on a phone and on a desk, by light and by dark, and
//! complete in itself.

use crate::Browser;

/// A phone's screen, in CSS pixels.
pub const PHONE: (u32, u32) = (390, 844);
/// A desk's.
pub const DESK: (u32, u32) = (1280, 800);

/// Nothing is wider than the screen, also where all that is folded is open.
#[track_caller]
pub fn fits(browser: &Browser, what: &str) {
    let widths = browser.run(
        "const page = document.documentElement;
         for (const details of document.querySelectorAll('details')) details.open = true;
         const widths = [page.scrollWidth, page.clientWidth, innerWidth];
         for (const details of document.querySelectorAll('details')) details.open = false;
         return widths",
    );
    let width = |at: usize| widths[at].as_u64().unwrap();
    assert!(
        width(0) <= width(1) && width(1) == width(2),
        "{what}: {widths}"
    );
    // Letters of a picture must not leave it either.
    let out = browser.run(
        "return [...document.querySelectorAll('svg text')].filter(text => {
            const box = text.getBoundingClientRect(), svg = text.ownerSVGElement.getBoundingClientRect();
            return box.left < svg.left - 1 || box.right > svg.right + 1;
         }).map(text => text.textContent)",
    );
    assert_eq!(out.to_string(), "[]", "{what}");
}

/// WCAG AA: 4.5 to 1 for every text on what lies behind it.
#[track_caller]
pub fn has_contrast(browser: &Browser, what: &str) {
    let poor = browser.run(
        "const parse = color => (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
         const light = ([r, g, b]) => [r, g, b].map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
            .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
         const ground = element => {
            for (; element; element = element.parentElement) {
                const color = parse(getComputedStyle(element).backgroundColor);
                if (color.length < 4 || color[3] > 0) return color;
            }
            return [255, 255, 255];
         };
         const poor = [];
         for (const element of document.querySelectorAll('body *')) {
            const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
            if (!own || ['title', 'desc'].includes(element.tagName)) continue;
            const style = getComputedStyle(element);
            const text = light(parse(element instanceof SVGElement ? style.fill : style.color));
            const behind = light(ground(element));
            const ratio = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
            if (ratio < 4.5) poor.push(element.textContent.slice(0, 40) + ': ' + ratio.toFixed(2));
         }
         return poor",
    );
    assert_eq!(poor.to_string(), "[]", "{what}");
}

/// It runs no script and loads nothing.
#[track_caller]
pub fn loads_nothing(browser: &Browser) {
    let asked =
        browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)");
    assert_eq!(asked.to_string(), "[]");
    let foreign = browser.run(
        "return [...document.querySelectorAll('script, link, img, iframe, object, embed, base, form, [src], [href]')]
            .map(element => element.outerHTML)",
    );
    assert_eq!(foreign.to_string(), "[]");
}
