(function () {
  "use strict";
  var rows = Array.prototype.slice.call(document.querySelectorAll("article.guarded"));
  var find = document.getElementById("find"), kind = document.getElementById("kind"), count = document.getElementById("count");

  function show() {
    var words = find.value.toLowerCase().split(/\s+/).filter(Boolean), num = 0;
    rows.forEach(function (row) {
      var text = row.getAttribute("data-find"), kinds = row.getAttribute("data-kinds");
      var fits = words.every(function (word) { return text.indexOf(word) >= 0; });
      if (kind.value && kinds.indexOf(" " + kind.value + " ") < 0) { fits = false; }
      row.hidden = !fits;
      num += fits ? 1 : 0;
    });
    count.textContent = num + " of " + rows.length + " answers";
  }

  find.addEventListener("input", show);
  kind.addEventListener("change", show);
})();
