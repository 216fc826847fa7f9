"use strict";

/**
 * Packed arrays, and maps over patches painted onto canvases as the static figures are.
 * A drawing is {canvas, heat: a map in 0 … 1, picture: its pixels, once painted}.
 */
function heatMaps(ROWS, COLUMNS, packedColours) {
  const SIDE = 224; // pixels of a canvas
  const colours = unpack(packedColours).values;
  const pictures = new Map();

  function unpack({ type, shape, data: text }) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    if (type === "uint8") return { shape, values: bytes };
    const view = new DataView(bytes.buffer);
    return { shape, values: Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true)) };
  }

  /** From the smallest to the largest value in 0 … 1. */
  function unit(values) {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return values.map((value) => (most > least ? (value - least) / (most - least) : 0));
  }

  /** Colours of values in 0 … 1, as CSS writes them. */
  function shades(values) {
    return values.map((value) => `rgb(${[...colours.subarray(3 * Math.round(255 * value)).subarray(0, 3)].join(" ")})`);
  }

  /** A picture's brightness, once it is decoded: `SIDE · SIDE` numbers of 0 … 255. */
  function greyed(source) {
    if (!pictures.has(source)) pictures.set(source, brightness(source));
    return pictures.get(source);
  }

  async function brightness(source) {
    const image = Object.assign(new Image(), { src: source });
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = image.naturalWidth > 64;
    context.drawImage(image, 0, 0, SIDE, SIDE);
    const { data } = context.getImageData(0, 0, SIDE, SIDE);
    return Float32Array.from({ length: SIDE * SIDE }, (_, i) => (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3);
  }

  /** Where a pixel lies between two patches' middles: the lower one, the upper one and the upper one's weight. */
  function between(pixel, count) {
    const centre = Math.min(count - 1, Math.max(0, ((pixel + 0.5) * count) / SIDE - 0.5));
    const low = Math.floor(centre);
    return [low, Math.min(low + 1, count - 1), centre - low];
  }

  /** The hotter a pixel is, the less of the picture shines through. */
  function paint(drawing, grey, patch) {
    const { heat, canvas } = drawing;
    const picture = new ImageData(SIDE, SIDE);
    const columns = [...Array(SIDE).keys()].map((x) => between(x, COLUMNS));
    for (let y = 0, i = 0; y < SIDE; y++) {
      const [top, bottom, down] = between(y, ROWS);
      for (let x = 0; x < SIDE; x++, i++) {
        const [left, right, across] = columns[x];
        const above = heat[top * COLUMNS + left] * (1 - across) + heat[top * COLUMNS + right] * across;
        const below = heat[bottom * COLUMNS + left] * (1 - across) + heat[bottom * COLUMNS + right] * across;
        const value = above * (1 - down) + below * down;
        const alpha = 0.25 + 0.5 * value;
        const colour = 3 * Math.round(255 * value);
        for (let c = 0; c < 3; c++) picture.data[4 * i + c] = (1 - alpha) * grey[i] + alpha * colours[colour + c];
        picture.data[4 * i + 3] = 255;
      }
    }
    drawing.picture = picture;
    canvas.ariaBusy = "false";
    mark(drawing, patch);
  }

  /** Frames the patch whose numbers are read; none for -1. */
  function mark({ canvas, picture }, patch) {
    if (!picture) return; // it is painted with its frame later
    const context = canvas.getContext("2d");
    context.putImageData(picture, 0, 0);
    if (patch < 0) return;
    const [width, height] = [SIDE / COLUMNS, SIDE / ROWS];
    const [left, top] = [(patch % COLUMNS) * width, Math.floor(patch / COLUMNS) * height];
    for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(left + 1, top + 1, width - 2, height - 2);
    }
  }

  return { SIDE, unpack, unit, shades, greyed, paint, mark };
}
