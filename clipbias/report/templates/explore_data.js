"use strict";

/**
 * What was packed into the page, as numbers. An image or a pair of an image and a class is its place in the lists, a
 * layer or a prompt slot counts from 0, and a slot of -1 is the mean over slots.
 */
function exploredData(data, unpack) {
  const models = new Map(data.models.map((model) => [model.key, model]));
  for (const model of data.models)
    for (const name of Object.keys(model.arrays)) model.arrays[name] = unpack(model.arrays[name]);

  /** The part of an array at the first indices: the last axis, or one number. */
  function at({ shape, values }, ...indices) {
    const offset = indices.reduce((sum, index, axis) => sum * shape[axis] + index, 0);
    if (indices.length === shape.length) return values[offset];
    const length = shape.at(-1);
    return values.subarray(offset * length, (offset + 1) * length);
  }

  /** A quantised map as numbers. */
  function map(model, name, ...indices) {
    const { [name]: steps, [`${name}_scale`]: scale, [`${name}_lowest`]: lowest } = model.arrays;
    const [unit, least] = [at(scale, ...indices) / 255, lowest ? at(lowest, ...indices) : 0];
    return Float32Array.from(at(steps, ...indices), (step) => least + unit * step);
  }

  /** Distances from a slot, or their mean over slots, to every patch; null for a model without slots. */
  function distances(model, image, layer, slot) {
    if (!model.slots) return null;
    const slots = slot < 0 ? [...Array(model.slots).keys()] : [Math.min(slot, model.slots - 1)];
    const each = slots.map((one) => map(model, "distance", image, layer, one));
    return each[0].map((_, patch) => each.reduce((sum, values) => sum + values[patch], 0) / each.length);
  }

  const sum = (values) => values.reduce((total, value) => total + value, 0);

  return { data, models, at, map, distances, sum };
}

/** Numbers as the page writes them. */
const wording = {
  number: (value) => (value === 0 ? "0" : Math.abs(value) < 1e-4 ? value.toExponential(2) : value.toPrecision(3)),
  percent: (part, whole = 1) => `${(whole > 0 ? (100 * part) / whole : 0).toFixed(1)} %`,
  signed: (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2),
};

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
