(function () {
  "use strict";
  var list = document.getElementById("list");
  if (!list) { return; }
  var rows = Array.prototype.slice.call(list.querySelectorAll("details.concept"));
  var find = document.getElementById("find"), order = document.getElementById("order");
  var good = document.getElementById("good"), count = document.getElementById("count");

  function show() {
    var words = find.value.toLowerCase().split(/\s+/).filter(Boolean), num = 0;
    rows.forEach(function (row) {
      var text = row.getAttribute("data-find");
      var fits = words.every(function (word) { return text.indexOf(word) >= 0; });
      if (good && good.checked && row.getAttribute("data-bad") === "1") { fits = false; }
      row.hidden = !fits;
      num += fits ? 1 : 0;
    });
    count.textContent = num + " of " + rows.length + " concepts";
  }

  function sort() {
    var key = "data-" + order.value;
    rows.sort(function (a, b) { return Number(b.getAttribute(key)) - Number(a.getAttribute(key)); });
    rows.forEach(function (row) { list.appendChild(row); });
  }

  function open() {
    var there = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (there && there.tagName === "DETAILS") {
      there.hidden = false;
      there.open = true;
      there.scrollIntoView();
    }
  }

  find.addEventListener("input", show);
  order.addEventListener("change", sort);
  if (good) { good.addEventListener("change", show); }
  window.addEventListener("hashchange", open);
  open();
})();
