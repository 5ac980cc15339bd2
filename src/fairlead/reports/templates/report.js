(function () {
  "use strict";
  var scheme = window.matchMedia("(prefers-color-scheme: dark)");
  var swaps = JSON.parse(document.getElementById("fl-palette").textContent);
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot[data-figure]"));

  function recolour(value) {
    if (typeof value === "string") { return Object.prototype.hasOwnProperty.call(swaps, value) ? swaps[value] : value; }
    if (Array.isArray(value)) { return value.map(recolour); }
    if (value && typeof value === "object") {
      var out = {};
      Object.keys(value).forEach(function (key) { out[key] = recolour(value[key]); });
      return out;
    }
    return value;
  }

  function draw(element, dark) {
    var source = document.getElementById(element.getAttribute("data-figure"));
    var figure = JSON.parse(source.textContent);
    if (dark) { figure = recolour(figure); }
    var layout = figure.layout;
    if (element.clientWidth < 480) {
      ["xaxis", "xaxis2"].forEach(function (name) {
        if (layout[name] && layout[name].nticks) { layout[name].nticks = 3; }
      });
      if (layout.xaxis && layout.xaxis.ticktext && layout.xaxis.ticktext.length > 4) { layout.xaxis.tickangle = 90; }
    }
    Plotly.react(element, figure.data, layout, {
      displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false, doubleClick: false,
      typesetMath: false, showTips: false
    });
  }

  function drawAll(dark) { plots.forEach(function (element) { draw(element, dark); }); }

  if (window.Plotly && plots.length) {
    drawAll(scheme.matches);
    scheme.addEventListener("change", function () { drawAll(scheme.matches); });
    window.addEventListener("beforeprint", function () { drawAll(false); });
    window.addEventListener("afterprint", function () { drawAll(scheme.matches); });
  }

  document.querySelectorAll("[data-open-all]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      var all = document.querySelectorAll("#" + button.getAttribute("data-open-all") + " details");
      var open = Array.prototype.some.call(all, function (d) { return !d.open; });
      all.forEach(function (d) { d.open = open; });
      button.textContent = open ? "Close all" : "Open all";
    });
  });
})();
