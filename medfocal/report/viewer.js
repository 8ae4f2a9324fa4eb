// Shows the volumes of a case in NiiVue, through the widget of the Python package ipyniivue. The widget expects a
// notebook's model: `Model` stands in for it, with the names and starting values that ipyniivue's own classes have.
(() => {
  "use strict";
  const settings = JSON.parse(document.getElementById("viewer-settings").textContent);
  const dialog = document.getElementById("viewer");
  const [stage, state, place] = ["stage", "state", "place"].map((name) => dialog.querySelector(`.${name}`));
  const NEVER = 0; // NiiVue's SHOW_RENDER
  const MASKS = ["reference", "prediction"];

  class Model {
    constructor(values) {
      this.values = values;
      this.listeners = {};
      this.parts = new Map();
      this.widget_manager = { get_model: async (id) => this.parts.get(id) };
    }
    get(name) { return this.values[name]; }
    set(name, value) { this.values[name] = value; }
    save_changes() {}
    on(name, listener) { (this.listeners[name] ??= []).push(listener); }
    off(name, listener) {
      this.listeners[name] = listener ? (this.listeners[name] ?? []).filter((one) => one !== listener) : [];
    }
    // Voxels would be sent to Python; without a living comm the widget sends nothing.
    send_sync_message() {}
    send({ event, data }) { this.heard?.(event, data); }
    tell(name, ...what) { for (const listener of this.listeners[name] ?? []) listener(...what); }
    change(name, value) { this.set(name, value); this.tell(`change:${name}`); }
    order(type, ...data) { this.tell("msg:custom", { type, data }, []); }
  }

  const nothing = { name: "" };
  const volume = (id, data, looks) => new Model({
    id, name: `${id}.nii.gz`, data: new DataView(data), path: nothing, url: null, paired_img_path: nothing,
    paired_img_url: null, paired_img_data: null, opacity: 1, colormap: "gray", colormap_negative: "",
    colormap_label: null, colormap_type: 0, colormap_invert: false, colorbar_visible: false, cal_min: null, cal_max: null,
    cal_min_neg: null, cal_max_neg: null, frame_4d: 0, modulation_image: null, modulate_alpha: 0, ...looks,
  });
  const screen = new Model({
    this_model_id: "", height: 0, volumes: [], meshes: [], background_masks_overlays: 0, draw_lut: null,
    draw_opacity: 0.8, draw_fill_overwrites: true, graph: null, scene: null, overlay_outline_width: 0,
    overlay_alpha_shader: 1,
    opts: {
      isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: NEVER, dragAndDropEnabled: false,
      crosshairWidth: 0.5, crosshairGap: 6, crosshairColor: [1, 1, 1, 0.8], backColor: [0.05, 0.05, 0.06, 1],
      fontColor: [0.8, 0.8, 0.8, 1], loadingText: "", logLevel: "error", isColorbar: false,
    },
  });

  const bytes = async (name) => {
    if (!settings.embedded) {
      const answer = await fetch(`viewer/${name}`);
      if (!answer.ok) throw new Error(`viewer/${name}: ${answer.status} ${answer.statusText}`);
      return answer.arrayBuffer();
    }
    const text = atob(document.getElementById(name).textContent.trim());
    const found = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at += 1) found[at] = text.charCodeAt(at);
    return found.buffer;
  };

  const importWidget = async () => {
    if (!settings.embedded) return import(new URL(`viewer/${settings.script}`, document.baseURI).href);
    const packed = new Blob([await bytes(settings.script)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const source = URL.createObjectURL(new Blob([await new Response(packed).arrayBuffer()], { type: "text/javascript" }));
    try {
      return await import(source);
    } finally {
      URL.revokeObjectURL(source);
    }
  };

  const control = (name) => dialog.querySelector(`[name=${name}]`);
  const opacity = (mask) => (control(mask).checked ? Number(control("strength").value) / 100 : 0);

  const start = async () => {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2");
    const widget = (await importWidget()).default;
    await widget.initialize({ model: screen });
    await widget.render({ model: screen, el: stage });
    const canvas = stage.querySelector("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-describedby", "viewer-help");
    for (const [name, colour] of [["reference", [86, 180, 233]], ["prediction", [245, 166, 35]]]) {
      const [R, G, B] = colour.map((level) => [0, level]);
      screen.order("add_colormap", name, { R, G, B, A: [0, 255], I: [0, 255] });
    }
  };

  let onScreen = null; // number of the case
  const show = async (number) => {
    if (onScreen === number) return;
    onScreen = null;
    const files = settings.cases[number];
    const parts = await Promise.all(["image", "reference", "predicted"].map((part) => bytes(files[part])));
    const volumes = [
      volume(`image-${number}`, parts[0], { cal_min: files.grey[0], cal_max: files.grey[1] }),
      ...MASKS.map((mask, at) => volume(`${mask}-${number}`, parts[at + 1], {
        colormap: mask, cal_min: 0.5, cal_max: 1, opacity: opacity(mask),
      })),
    ];
    screen.parts = new Map(volumes.map((one) => [one.get("id"), one]));
    const drawn = new Promise((done) => {
      const last = volumes.at(-1).get("id");
      screen.heard = (event, data) => { if (event === "image_loaded" && data.id === last) done(); };
    });
    // The widget takes the ten letters of "IPY_MODEL_" off.
    screen.change("volumes", [...screen.parts.keys()].map((id) => `IPY_MODEL_${id}`));
    await drawn;
    screen.heard = (event, data) => { if (event === "location_change") tell(data); };
    onScreen = number;
  };

  const tell = ({ mm, values }) => {
    const [x, y, z] = [...mm].map((length) => length.toFixed(1).replace("-", "\u2212"));
    const [grey, reference, predicted] = values.map((one) => one.value);
    const inside = (value, name) => `${value > 0 ? "in" : "outside"} the ${name}`;
    place.textContent = `x ${x}, y ${y}, z ${z} mm (RAS); grey value ${Number(grey.toPrecision(4))}; `
      + `${inside(reference, "reference")}, ${inside(predicted, "prediction")}`;
  };

  let target;
  const look = () => {
    screen.change("scene", { crosshairPos: target.place });
    screen.order("draw_scene");
    screen.order("move_crosshair_in_vox", 0, 0, 0); // it tells where the cross is
  };

  let started; // once it has succeeded
  const load = async (wanted) => {
    if (wanted !== target) return; // closed and opened elsewhere meanwhile
    try {
      if (!settings.embedded && location.protocol === "file:") throw new Error("a page opened as a file cannot read them");
      if (!started) await start();
      started = true;
      await show(wanted.number);
      stage.querySelector("canvas").setAttribute("aria-label", wanted.title);
      look();
      state.textContent = "";
      dialog.dataset.shown = wanted.number;
    } catch (error) {
      state.textContent = `The volumes cannot be shown: ${error.message}. `
        + (settings.embedded ? "The pictures of the page show the same place." : "Serve the folder as said above the pictures.");
    }
  };

  let loading = Promise.resolve(); // one after the other: there is one screen
  const open = (button) => {
    const { volumes, place: there } = button.dataset;
    const title = document.getElementById(button.getAttribute("aria-describedby")).textContent;
    const wanted = { number: Number(volumes), place: there.split(" ").map(Number), title };
    target = wanted;
    document.getElementById("viewer-title").textContent = title;
    state.textContent = "Loading \u2026";
    place.textContent = "";
    delete dialog.dataset.shown;
    button.focus({ preventScroll: true }); // where the focus returns to, also after a click on a picture
    dialog.showModal();
    loading = loading.then(() => load(wanted));
  };

  const fade = () => {
    for (const mask of MASKS) screen.parts.get(`${mask}-${onScreen}`)?.change("opacity", opacity(mask));
  };
  const turn = () => {
    screen.change("opts", { ...screen.get("opts"), sliceType: Number(control("view").value) });
    screen.order("draw_scene");
  };
  // On the screen the patient's right is on the left.
  const steps = {
    ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1],
    PageDown: [0, 0, -1],
  };
  stage.addEventListener("keydown", (event) => {
    if (!steps[event.key]) return;
    event.preventDefault();
    screen.order("move_crosshair_in_vox", ...steps[event.key]);
  });
  for (const name of [...MASKS, "strength"]) control(name).addEventListener("input", fade);
  control("view").addEventListener("change", turn);
  control("back").addEventListener("click", look);
  control("close").addEventListener("click", () => dialog.close());

  for (const paragraph of document.querySelectorAll(".finding .open")) {
    const button = paragraph.querySelector("button");
    paragraph.hidden = false;
    button.addEventListener("click", () => open(button));
    const planes = paragraph.closest(".finding").querySelector(".planes");
    planes.classList.add("opens");
    planes.addEventListener("click", () => open(button));
  }
})();
