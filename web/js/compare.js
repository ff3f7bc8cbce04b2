// The widget of Compare Photos: two pictures, before and after, under a slider.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const NODE = "ColorFlux_Compare";
const STEP = 5; // percent of the width per press of an arrow key

// The stage is the largest box with the picture's aspect ratio (--ratio) that fits the view.
const STYLE = `
.colorflux-compare {
  display: flex; flex-direction: column; gap: 4px; min-height: 160px;
  color: var(--input-text); font: 12px sans-serif;
}
.colorflux-compare .view {
  flex: 1; min-height: 0; container-type: size; display: grid; place-items: center;
}
.colorflux-compare .stage {
  position: relative; width: min(100cqw, 100cqh * var(--ratio)); aspect-ratio: var(--ratio);
  cursor: ew-resize; touch-action: none; user-select: none;
}
.colorflux-compare img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
.colorflux-compare .before { clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.colorflux-compare .line {
  position: absolute; inset: 0 auto 0 var(--at); width: 2px; translate: -50%;
  background: #fff; box-shadow: 0 0 3px #000;
}
.colorflux-compare .label {
  position: absolute; bottom: 6px; padding: 0 6px; border-radius: 4px;
  background: #0009; color: #fff; pointer-events: none;
}
.colorflux-compare .frames { display: flex; justify-content: center; align-items: center; }
.colorflux-compare button {
  padding: 0 12px; border: 0; background: none; color: inherit; font-size: 20px; cursor: pointer;
}
.colorflux-compare [hidden] { display: none; }
`;

/** Creates the widget. Returns its element, and a function that shows a node's output in it. */
function comparison(beforeLabel, afterLabel) {
  const root = document.createElement("div");
  root.className = "colorflux-compare";
  root.innerHTML = `
    <div class="view">
      <div class="stage" role="slider" tabindex="0" aria-valuemin="0" aria-valuemax="100" hidden>
        <img class="after" draggable="false">
        <img class="before" draggable="false">
        <div class="line"></div>
        <span class="label" style="left: 6px"></span>
        <span class="label" style="right: 6px"></span>
      </div>
    </div>
    <div class="frames" hidden>
      <button aria-label="previous">‹</button><output></output><button aria-label="next">›</button>
    </div>`;
  const stage = root.querySelector(".stage");
  const [after, before] = root.querySelectorAll("img");
  const frames = root.querySelector(".frames");
  const [previous, next] = frames.querySelectorAll("button");

  const labels = [beforeLabel, afterLabel];
  root.querySelectorAll(".label").forEach((label, side) => (label.textContent = labels[side]));
  stage.ariaLabel = labels.join(" / ");
  before.alt = beforeLabel;
  after.alt = afterLabel;

  let at; // position of the slider: percent of the width that shows "before"
  function slideTo(percent) {
    at = Math.min(100, Math.max(0, percent));
    stage.style.setProperty("--at", `${at}%`);
    stage.ariaValueNow = Math.round(at);
  }

  function follow(event) {
    const box = stage.getBoundingClientRect();
    slideTo((100 * (event.clientX - box.left)) / box.width);
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  stage.addEventListener("keydown", (event) => {
    const target = {
      ArrowLeft: at - STEP,
      ArrowDown: at - STEP,
      ArrowRight: at + STEP,
      ArrowUp: at + STEP,
      Home: 0,
      End: 100,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    slideTo(target);
  });
  // Forward the wheel to the canvas, so that it still zooms.
  root.addEventListener("wheel", (event) => {
    event.preventDefault();
    app.canvas.canvas.dispatchEvent(new WheelEvent(event.type, event));
  });

  let pairs = [];
  let frame = 0;
  async function turnTo(index) {
    frame = (index + pairs.length) % pairs.length;
    frames.hidden = pairs.length === 1;
    frames.querySelector("output").textContent = `${frame + 1} / ${pairs.length}`;
    [before.src, after.src] = pairs[frame];
    try {
      await Promise.all([before.decode(), after.decode()]);
      stage.style.setProperty("--ratio", before.naturalWidth / before.naturalHeight);
      stage.hidden = false;
    } catch {
      stage.hidden = true; // temporary pictures of an earlier session no longer exist
    }
  }
  previous.addEventListener("click", () => turnTo(frame - 1));
  next.addEventListener("click", () => turnTo(frame + 1));

  slideTo(50);
  return {
    element: root,
    show({ a_images: befores = [], b_images: afters = [] }) {
      const count = befores.length && afters.length && Math.max(befores.length, afters.length);
      pairs = Array.from({ length: count }, (_, index) =>
        [befores, afters].map((pictures) => viewURL(pictures[index] ?? pictures.at(-1))),
      );
      if (count) turnTo(frame < count ? frame : 0);
    },
  };
}

function viewURL(picture) {
  return api.apiURL(`/view?${new URLSearchParams(picture)}`);
}

function inputLabel(node, name) {
  return node.inputs.find((input) => input.name === name)?.localized_name ?? name;
}

/** The node of an output's key: "id", or "subgraph:id" for a node in a subgraph. */
function nodeOf(key) {
  const [id, subgraph] = key.split(":").reverse();
  const graph = subgraph ? app.graph.subgraphs.get(subgraph) : app.graph;
  return graph?.getNodeById(id);
}

app.registerExtension({
  name: "ColorFLUX.Compare",

  init() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const { element, show } = comparison(inputLabel(node, "before"), inputLabel(node, "after"));
    const widget = node.addDOMWidget("slider", "colorflux_slider", element, {
      serialize: false,
      hideOnZoom: false,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], 360), Math.max(node.size[1], 360)]);

    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      show(output);
    };
  },

  // When the user returns to a workflow's tab, ComfyUI recreates the nodes but keeps the outputs.
  onNodeOutputsUpdated(outputs) {
    for (const [key, output] of Object.entries(outputs)) {
      const node = nodeOf(key);
      if (node?.comfyClass === NODE) node.onExecuted(output);
    }
  },
});
