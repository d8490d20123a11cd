// What is wrong for those who cannot see, or not well: fields and buttons without a name, pictures without words, and
// texts that stand out too little (WCAG 2.2, 1.4.3 and 4.1.2).
const found = [];
const shown = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest(".unseen, .skip");
const name = (node) => node.getAttribute("aria-label") || node.innerText || node.labels?.[0]?.textContent
    || document.getElementById(node.getAttribute("aria-labelledby"))?.textContent;
for (const node of document.querySelectorAll("button, input, textarea, progress, section, [role=region], [role=img], [role=log]")) {
    if (node.checkVisibility() && !name(node)?.trim()) found.push(`no name: ${node.outerHTML.slice(0, 120)}`);
}
for (const node of document.querySelectorAll("img:not([alt])")) found.push(`no words: ${node.outerHTML}`);
for (const wanted of ["header", "main", "h1"]) if (document.querySelectorAll(wanted).length !== 1) found.push(`not one ${wanted}`);
const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
const paint = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
let texts = 0;
for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !shown(node) || node.disabled || ["SCRIPT", "TITLE", "title", "NOSCRIPT"].includes(node.tagName)) continue;
    const below = [];
    for (let at = node; at; at = at.parentElement) below.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(node);
    const [text, ground] = [[...below, node instanceof SVGElement ? style.fill : style.color], below].map((colours) => light(paint(colours)));
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    texts += 1;
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${node.textContent.slice(0, 60)}`);
}
if (texts < 20) found.push(`only ${texts} texts looked at`);
return found;
