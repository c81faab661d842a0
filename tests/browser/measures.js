// What a reader can see and reach on a page; an object of functions, so that a test names the one it wants.
({
  pixel: document.createElement("canvas").getContext("2d", { willReadFrequently: true }),
  known: new Map(),

  // Any CSS colour as [red, green, blue, alpha], the last from 0 to 1.
  rgba(colour) {
    if (!this.known.has(colour)) {
      this.pixel.clearRect(0, 0, 1, 1);
      this.pixel.fillStyle = colour;
      this.pixel.fillRect(0, 0, 1, 1);
      const [red, green, blue, alpha] = this.pixel.getImageData(0, 0, 1, 1).data;
      this.known.set(colour, [red, green, blue, alpha / 255]);
    }
    return this.known.get(colour);
  },

  over([red, green, blue, alpha], below) {
    return [red, green, blue].map((value, at) => value * alpha + below[at] * (1 - alpha));
  },

  // The colour behind an element, of the backgrounds of all that it lies in.
  ground(element) {
    const below = element.parentElement ? this.ground(element.parentElement) : [255, 255, 255];
    return this.over(this.rgba(getComputedStyle(element).backgroundColor), below);
  },

  // Relative luminance after WCAG 2.2.
  luminance(colour) {
    const [red, green, blue] = colour.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  },

  opacity(element) {
    const own = Number(getComputedStyle(element).opacity);
    return element.parentElement ? own * this.opacity(element.parentElement) : own;
  },

  contrast(element) {
    const style = getComputedStyle(element), ground = this.ground(element);
    const colour = [...this.rgba(element.closest("svg") ? style.fill : style.color)];
    colour[3] *= this.opacity(element);
    const [low, high] = [this.luminance(ground), this.luminance(this.over(colour, ground))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  },

  // The elements that show text of their own.
  texts() {
    const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (walker.currentNode.data.trim() && element.checkVisibility()) found.add(element);
    }
    return [...found];
  },

  // Texts with less contrast than WCAG 2.2 asks for (AA): 3 of large letters, 4.5 of all others.
  faint() {
    const needed = (style) => {
      const size = parseFloat(style.fontSize);
      return size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    };
    return this.texts()
      .map((element) => [element, this.contrast(element)])
      .filter(([element, contrast]) => contrast < needed(getComputedStyle(element)))
      .map(([element, contrast]) => `${contrast.toFixed(2)}: ${element.textContent.trim().slice(0, 60)}`);
  },

  // The smallest letters of the charts, in CSS pixels as they are shown.
  smallest() {
    const sizes = [...document.querySelectorAll(".drawing text")].filter((each) => each.checkVisibility()).map((each) => {
      const { a, b } = each.getScreenCTM();
      return parseFloat(getComputedStyle(each).fontSize) * Math.hypot(a, b);
    });
    return Math.min(...sizes);
  },

  // What a finger has to hit and is too low for one: under the 24 pixels of WCAG 2.2 (AA).
  low() {
    return [...document.querySelectorAll("a[href], summary")]
      .filter((each) => each.checkVisibility() && !each.closest("p, li, td, dd"))
      .filter((each) => each.getBoundingClientRect().height < 24)
      .map((each) => each.textContent.trim().slice(0, 40));
  },

  // What reaches beyond the right edge of the window, unless it lies in a box that scrolls.
  outside() {
    const scrolls = (element) => element && (/auto|scroll/.test(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
    return [...document.querySelectorAll("body *")]
      .filter((each) => each.checkVisibility() && each.getBoundingClientRect().right > innerWidth + 1 && !scrolls(each))
      .map((each) => `${each.localName}.${each.className}: ${each.textContent.trim().slice(0, 40)}`);
  },

  open() {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  },
})
