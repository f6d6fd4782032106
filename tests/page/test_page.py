"""The page in a browser, beside what the API says. Nothing asserts how long it took."""

import re

import pytest
from playwright.sync_api import Page, expect

from conftest import MODEL, SAMPLES

NAMES = ["airplane.png", "automobile.jpg", "horse.jpg", "ship.webp", "truck.jpg"]
PHONE = {"width": 360, "height": 740}


def pick(page: Page, *files):
    page.get_by_label("Pick images").set_input_files(list(files))


def card(page: Page, name: str):
    return page.locator(".card").filter(has=page.get_by_role("heading", name=name, exact=True))


def block(of, index: int):
    return of.get_by_role("button", name=f"Block {index}", exact=True)


def lit(of) -> str:
    """The mask that a card shows, from its blocks."""
    blocks = of.locator(".net .block").all()
    return "".join("1" if item.get_attribute("aria-pressed") == "true" else "0" for item in blocks)


def shows(of, result: dict):
    """Waits until a card shows an API's result, and compares all of it."""
    path = result["path"]
    expect(of).to_have_attribute("aria-busy", "false")
    expect(of.locator(".net")).to_have_attribute("data-mask", path["mask"])
    assert lit(of) == path["mask"]
    assert path["mask"].count("1") == path["blocks_kept"]
    kept = f"{path['blocks_kept']} of {path['blocks_total']} blocks"
    expect(of.locator(".headline")).to_contain_text(kept)
    share = f"{result['flops']['ratio'] * 100:.0f} % of the FLOPs"
    expect(of.locator(".headline")).to_contain_text(share)
    for entry, prediction in zip(
        of.locator(".classes li").all(), result["predictions"], strict=False
    ):
        expect(entry).to_contain_text(prediction["label"])
    name = of.locator(".net").get_attribute("aria-label")
    indices = [str(index) for index, bit in enumerate(path["mask"]) if bit == "1"]
    assert name == f"{kept} kept" + (f": {', '.join(indices)}" if indices else "")


def agrees(of, result: dict, full: dict):
    """Checks what a card says of the full net's class."""
    label = full["predictions"][0]["label"]
    same = result["predictions"][0]["label"] == label
    words = "Same class as the full net" if same else "The full net says"
    expect(of.locator(".verdict")).to_contain_text(f"{words}: {label}")
    expect(of.locator(".verdict")).to_have_class("verdict agrees" if same else "verdict differs")


def set_threshold(page: Page, value: float):
    page.get_by_role("slider", name="Threshold").fill(str(value))
    expect(page.locator("#threshold-value")).to_have_text(f"{value:.2f}")


def test_before_any_image_the_net_is_shown_unlit(visit):
    page = visit()
    expect(page.locator("#about")).to_contain_text("15 blocks, 10 classes")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#empty .block")).to_have_count(15)
    expect(page.locator("#empty .block.kept")).to_have_count(0)
    expect(page.locator("#empty .shape")).to_have_text(["32×32", "16×16", "8×8"])


def test_an_uploaded_image_is_shown_as_the_api_answers(visit, server):
    page = visit()
    image = SAMPLES / "ship.webp"
    pick(page, image)
    of = card(page, "ship.webp")
    result, full = server.classify(image), server.classify(image, path="full")
    shows(of, result)
    agrees(of, result, full)
    first = result["predictions"][0]
    expect(of.locator(".classes li").first).to_contain_text(f"{first['probability'] * 100:.2f} %")
    spent = (result["flops"]["policy"] + result["flops"]["executed"]) / full["flops"]["executed"]
    expect(of.locator(".flops .text")).to_contain_text(f"{spent * 100:.0f} %")
    expect(of.locator(".time .text")).to_have_text(re.compile(r"^[\d.]+ of [\d.]+ ms, \d+.%$"))
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.get_by_role("status")).to_contain_text("1 image: 5 of 15 blocks")


def test_several_images_stand_side_by_side(visit, server):
    page = visit(viewport={"width": 1400, "height": 900})
    page.get_by_role("button", name="All five").click()
    kept = 0
    for name in NAMES:
        result = server.classify(SAMPLES / name)
        kept += result["path"]["blocks_kept"]
        shows(card(page, name), result)
        agrees(card(page, name), result, server.classify(SAMPLES / name, path="full"))
    expect(page.get_by_role("status")).to_contain_text(f"5 images: {kept / 5:g} of 15 blocks")
    expect(page.get_by_role("status")).to_contain_text("5 of 5 the same class as the full net")
    boxes = [card(page, name).bounding_box() for name in NAMES[:2]]
    assert boxes[0]["y"] == boxes[1]["y"]

    card(page, "horse.jpg").get_by_role("button", name="Remove horse.jpg").click()
    expect(page.locator(".card")).to_have_count(4)
    expect(card(page, "ship.webp").locator(".remove")).to_be_focused()
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()


def test_an_image_can_be_dropped_and_pasted(visit, server):
    page = visit()
    transfer = page.evaluate_handle("""async () => {
        const bytes = await (await fetch("page/samples/truck.jpg")).blob();
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.jpg"));
        return transfer;
    }""")
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    expect(page.locator("body.dragging")).to_have_count(1)
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("body.dragging")).to_have_count(0)
    shows(card(page, "dropped.jpg"), server.classify(SAMPLES / "truck.jpg"))
    page.evaluate(
        """transfer => document.body.dispatchEvent(
        new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}))""",
        transfer,
    )
    expect(page.locator(".card")).to_have_count(2)


def test_the_threshold_runs_all_images_again(visit, server):
    page = visit()
    pick(page, SAMPLES / "horse.jpg", SAMPLES / "airplane.png")
    names = ["horse.jpg", "airplane.png"]
    full = {name: server.classify(SAMPLES / name, path="full") for name in names}
    decisions = set()
    for value in (0.5, 0.7, 0.2, 1):
        set_threshold(page, value)
        agreeing = 0
        for name in names:
            result = server.classify(SAMPLES / name, threshold=value)
            shows(card(page, name), result)
            agrees(card(page, name), result, full[name])
            same = result["predictions"][0]["class"] == full[name]["predictions"][0]["class"]
            agreeing += same
        decisions.add(agreeing)
        expect(page.get_by_role("status")).to_contain_text(f"{agreeing} of 2 the same class")
    assert decisions == {0, 1, 2}, "thresholds at which the decisions change"
    # All that was visited is plotted.
    expect(page.locator("#plot .dot.cost")).to_have_count(4)
    expect(page.locator("#plot")).to_have_attribute("aria-label", re.compile("From threshold 0.20"))
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#threshold-value")).to_have_text("0.50")
    shows(card(page, "horse.jpg"), server.classify(SAMPLES / "horse.jpg"))


def test_every_threshold_can_be_tried_at_once(visit, server):
    page = visit()
    pick(page, SAMPLES / "horse.jpg")
    shows(card(page, "horse.jpg"), server.classify(SAMPLES / "horse.jpg"))
    page.get_by_role("button", name="Try every threshold").click()
    expect(page.locator("#plot .dot.cost")).to_have_count(21)
    curve = card(page, "horse.jpg").locator(".curve svg")
    expect(curve.locator(".dot.quality")).to_have_count(21)
    label = server.classify(SAMPLES / "horse.jpg", path="full")["predictions"][0]["label"]
    tops = [
        server.classify(SAMPLES / "horse.jpg", threshold=step / 20)["predictions"][0]["label"]
        for step in range(21)
    ]
    same = [top == label for top in tops]
    words = f"The class is the full net’s at {sum(same)} of 21"
    expect(curve).to_have_attribute("aria-label", re.compile(words))
    expect(curve.locator(".band.agrees")).to_have_count(sum(same))


def test_blocks_can_be_kept_and_dropped_by_hand(visit, server):
    page = visit()
    image = SAMPLES / "ship.webp"
    pick(page, image)
    of = card(page, "ship.webp")
    learned = server.classify(image)
    shows(of, learned)
    expect(of.get_by_text("Blocks chosen by hand")).to_be_hidden()
    mask = list(learned["path"]["mask"])
    for index in (0, 4, 5):
        mask[index] = str(1 - int(mask[index]))
        block(of, index).click()
        shows(of, server.classify(image, path=f"mask:{''.join(mask)}"))
    expect(of.get_by_text("Blocks chosen by hand")).to_be_visible()
    of.get_by_role("button", name="Undo").click()
    shows(of, learned)
    # The threshold decides anew for images that were changed by hand too.
    block(of, 0).click()
    set_threshold(page, 0.3)
    shows(of, server.classify(image, threshold=0.3))


def test_other_ways_to_choose_blocks(visit, server):
    page = visit()
    image = SAMPLES / "truck.jpg"
    pick(page, image)
    of = card(page, "truck.jpg")
    page.get_by_text("Other ways to choose blocks").click()
    page.get_by_label("At most").fill("3")
    shows(of, server.classify(image, max_blocks=3))
    for path in ("first_k:6", "distribute_k:6", "random_k:6:1"):
        page.get_by_label("Chosen by").select_option(path.split(":")[0])
        page.get_by_label("k", exact=True).fill("6")
        shows(of, server.classify(image, path=path))
    expect(page.get_by_role("slider", name="Threshold")).to_be_disabled()
    page.get_by_label("Chosen by").select_option("full")
    shows(of, server.classify(image, path="full"))
    # More blocks than there are is not asked for.
    page.get_by_label("Chosen by").select_option("first_k")
    page.get_by_label("k", exact=True).fill("99")
    shows(of, server.classify(image, path="first_k:6"))


def test_a_bad_file_shows_the_apis_sentence_and_nothing_else_suffers(visit, server, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((SAMPLES / "airplane.png").read_bytes()[:2000])
    notes = tmp_path / "notes.txt"
    notes.write_text("no image at all")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    page = visit()
    pick(page, damaged, notes, SAMPLES / "ship.webp", empty)
    expect(card(page, "damaged.png").get_by_role("alert")).to_contain_text("PNG image is damaged")
    wrong = card(page, "notes.txt").get_by_role("alert")
    expect(wrong).to_contain_text("image's type is unknown")
    expect(wrong).to_contain_text("expected JPEG, PNG, WebP, BMP or GIF")
    # The same bytes would be refused again.
    expect(wrong.get_by_role("button")).to_be_hidden()
    expect(card(page, "empty.jpg").get_by_role("alert")).to_contain_text("empty")
    for name in ("damaged.png", "notes.txt", "empty.jpg"):
        expect(card(page, name).locator(".result")).to_be_hidden()
    shows(card(page, "ship.webp"), server.classify(SAMPLES / "ship.webp"))
    expect(page.get_by_role("status")).to_contain_text("1 image: 5 of 15 blocks")
    expect(page.get_by_role("status")).to_contain_text("3 images refused")
    # They are not asked about again with what changes for the others.
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_buffer))
    set_threshold(page, 0.7)
    shows(card(page, "ship.webp"), server.classify(SAMPLES / "ship.webp", threshold=0.7))
    assert notes.read_bytes() not in asked
    expect(wrong).to_contain_text("image's type is unknown")


def test_what_failed_for_another_reason_can_be_tried_again(visit, server):
    page = visit()
    expect(page.locator("#about")).not_to_be_empty()
    page.route("**/v1/classify*", lambda route: route.abort())
    pick(page, SAMPLES / "ship.webp")
    of = card(page, "ship.webp")
    expect(of.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/classify*")
    full = {"error": "the queue is full; try again in a moment", "code": "overloaded"}
    page.route("**/v1/classify*", lambda route: route.fulfill(status=503, json=full))
    of.get_by_role("button", name="Try again").click()
    expect(of.get_by_role("alert")).to_contain_text("the queue is full")
    page.unroute("**/v1/classify*")
    of.get_by_role("button", name="Try again").click()
    shows(of, server.classify(SAMPLES / "ship.webp"))
    expect(of.get_by_role("alert")).to_be_hidden()


def test_names_of_files_are_text(visit, server, tmp_path):
    image = tmp_path / "<img src=x onerror=alert(1)> & <b>bold<b>.webp"
    image.write_bytes((SAMPLES / "ship.webp").read_bytes())
    page = visit()
    pick(page, image)
    shows(card(page, image.name), server.classify(image))
    expect(page.locator(".card h3 *")).to_have_count(0)


def test_there_are_at_most_24_images(visit):
    page = visit()
    pick(page, *[SAMPLES / "ship.webp"] * 26)
    expect(page.locator(".card")).to_have_count(24)
    expect(page.locator("#notice")).to_contain_text("24 images at once; 2 images were left out")
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#notice")).to_be_hidden()


def test_another_model_can_be_picked(visit):
    page = visit()
    expect(page.get_by_label("Model", exact=True)).to_have_value(MODEL)
    pick(page, SAMPLES / "ship.webp")
    expect(card(page, "ship.webp").locator(".headline")).to_contain_text("5 of 15")
    with page.expect_request(re.compile(r"/v1/classify\?model=another&.*path=policy")):
        page.get_by_label("Model", exact=True).select_option("another")
    expect(page.locator("#about")).to_contain_text("another, version 1")
    expect(card(page, "ship.webp")).to_have_attribute("aria-busy", "false")


def test_a_server_without_models_says_so(visit):
    page = visit(
        lambda page: page.route("**/v1/models", lambda route: route.fulfill(json={"models": []}))
    )
    expect(page.get_by_role("alert")).to_have_text("No model is loaded.")


def test_a_key_is_asked_for_where_the_server_wants_one(visit, server):
    asked = []

    def guard(page):
        def check(route):
            given = route.request.headers.get("authorization")
            asked.append(given)
            if given == "Bearer secret":
                return route.continue_()
            refusal = {"error": "the API key is missing or wrong", "code": "unauthenticated"}
            return route.fulfill(status=401, json=refusal)

        page.route("**/v1/**", check)

    page = visit(guard)
    key = page.get_by_label("This server asks for an API key")
    expect(key).to_be_focused()
    assert set(asked) == {None}
    pick(page, SAMPLES / "ship.webp")
    key.fill("wrong")
    key.press("Enter")
    expect(key).to_be_focused()
    expect(key).to_have_value("")
    key.fill("secret")
    page.get_by_role("button", name="Use it").click()
    expect(key).to_be_hidden()
    shows(card(page, "ship.webp"), server.classify(SAMPLES / "ship.webp"))
    expect(page.locator("#live-images")).to_have_text(re.compile(r"^[\d,]+$"))
    assert page.evaluate("localStorage.length") == 0
    assert "secret" not in page.url

    # A key that stops being good is asked for again, and what waited for it goes on.
    page.unroute("**/v1/**")
    refusal = {"error": "the API key is missing or wrong", "code": "unauthenticated"}
    page.route("**/v1/classify*", lambda route: route.fulfill(status=401, json=refusal))
    set_threshold(page, 0.3)
    expect(key).to_be_visible()
    page.unroute("**/v1/classify*")
    key.fill("secret")
    key.press("Enter")
    shows(card(page, "ship.webp"), server.classify(SAMPLES / "ship.webp", threshold=0.3))


def test_the_servers_own_statistics_are_shown(visit, server):
    page = visit()
    pick(page, SAMPLES / "ship.webp")
    shows(card(page, "ship.webp"), server.classify(SAMPLES / "ship.webp"))
    expect(page.locator("#live-rate")).to_have_text(re.compile(r"^[\d.]+$"))

    def settled() -> bool:
        found = server.get(f"/v1/models/{MODEL}/statistics")
        return page.locator("#live-images").inner_text() == f"{found['images']:,}"

    for _ in range(30):
        if settled():
            break
        page.wait_for_timeout(1000)
    found = server.get(f"/v1/models/{MODEL}/statistics")
    expect(page.locator("#live-images")).to_have_text(f"{found['images']:,}")
    kept = f"{found['blocks_kept'] / found['images']:.1f} of {found['blocks_total']}"
    expect(page.locator("#live-blocks")).to_have_text(kept)
    flops = found["flops"]
    ratio = (flops["policy"] + flops["executed"]) / flops["full"]
    expect(page.locator("#live-flops")).to_have_text(f"{ratio * 100:.0f} %")
    expect(page.locator("#live-speedup")).to_have_text(f"{1 / ratio:.2f}×")


def test_all_of_it_works_with_the_keyboard(visit, server):
    page = visit()
    sample = page.get_by_role("button", name="Sample horse.jpg")
    reached = page.locator(":focus")
    for _ in range(12):
        page.keyboard.press("Tab")
        if sample.evaluate("button => button === document.activeElement"):
            break
    expect(sample).to_be_focused()
    page.keyboard.press("Enter")
    of = card(page, "horse.jpg")
    shows(of, server.classify(SAMPLES / "horse.jpg"))

    slider = page.get_by_role("slider", name="Threshold")
    while not slider.evaluate("input => input === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#threshold-value")).to_have_text("0.48")
    shows(of, server.classify(SAMPLES / "horse.jpg", threshold=0.48))

    # The network is one stop; arrows move in it, and the space bar presses.
    for _ in range(12):
        page.keyboard.press("Tab")
        if block(of, 0).evaluate("button => button === document.activeElement"):
            break
    expect(block(of, 0)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(block(of, 1)).to_be_focused()
    page.keyboard.press("End")
    expect(block(of, 14)).to_be_focused()
    page.keyboard.press("Home")
    mask = lit(of)
    page.keyboard.press("Space")
    mask = str(1 - int(mask[0])) + mask[1:]
    shows(of, server.classify(SAMPLES / "horse.jpg", path=f"mask:{mask}"))
    expect(block(of, 0)).to_be_focused()
    page.keyboard.press("Tab")
    expect(of.get_by_role("button", name="Undo")).to_be_focused()
    page.keyboard.press("Enter")
    expect(reached).to_have_class(re.compile("block"))


NAMELESS = """() => [...document.querySelectorAll("button, input, select, a, summary, img")]
    .filter(element => element.checkVisibility())
    .filter(element => !(element.getAttribute("aria-label") || element.textContent.trim()
        || element.alt || element.labels?.length || element.querySelector("img[alt]")))
    .map(element => element.outerHTML)"""

# Each text's colour against the first painted surface below it (WCAG's formula).
CONTRAST = """() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = colour => {
        const [r, g, b] = parts(colour).slice(0, 3).map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((parts(colour)[3] ?? 1) > 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
        if (element.closest(":disabled, option, script, style")) continue;
        const pair = [getComputedStyle(element).color, ground(element)].map(luminance);
        const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        found.push([ratio, texts.currentNode.textContent.trim()]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(visit, server, tmp_path, scheme):
    bad = tmp_path / "bad.gif"
    bad.write_text("GIF89a, but no more")
    page = visit(color_scheme=scheme)
    page.get_by_text("Other ways to choose blocks").click()
    pick(page, SAMPLES / "ship.webp", SAMPLES / "horse.jpg", bad)
    set_threshold(page, 0.7)
    shows(card(page, "horse.jpg"), server.classify(SAMPLES / "horse.jpg", threshold=0.7))
    expect(card(page, "horse.jpg").locator(".verdict.differs")).to_be_visible()
    expect(card(page, "bad.gif").get_by_role("alert")).to_be_visible()
    block(card(page, "ship.webp"), 3).click()
    expect(page.get_by_text("Blocks chosen by hand").first).to_be_visible()
    expect(page.locator(".card[aria-busy='true']")).to_have_count(0)

    assert page.evaluate(NAMELESS) == []
    texts = page.evaluate(CONTRAST)
    assert len(texts) > 40
    assert [entry for entry in texts if entry[0] < 4.5] == []
    colours = page.evaluate("""() => {
        const of = selector => getComputedStyle(document.querySelector(selector), "::before");
        const [kept, dropped] = [of(".card .block.kept"), of(".card .block:not(.kept)")];
        return [kept.backgroundColor, dropped.backgroundColor,
            kept.borderTopStyle, dropped.borderTopStyle];
    }""")
    # By shape as well as by colour.
    assert colours[0] != colours[1] and colours[2:] == ["solid", "dashed"]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 18)"
    assert dark == (scheme == "dark")


def deep(model: dict) -> dict:
    """A model as a ResNet-110: three segments of 18 blocks."""
    made = dict(model, name="deep", default=True)
    made["blocks"] = [block for block in model["blocks"] for _ in range(4)]
    made["blocks"] = [
        dict(made["blocks"][segment * 20 + index], segment=segment)
        for segment in range(3)
        for index in range(18)
    ]
    return made


@pytest.mark.parametrize("blocks", [15, 54])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit, server, blocks):
    mask = "100" * 18

    def deepen(page):
        if blocks == 15:
            return
        models = server.get("/v1/models")
        models["models"] = [deep(next(of for of in models["models"] if of["name"] == MODEL))]
        page.route("**/v1/models", lambda route: route.fulfill(json=models))
        result = server.classify(SAMPLES / "ship.webp")
        result["path"] |= {"mask": mask, "blocks_kept": 18, "blocks_total": 54}
        page.route("**/v1/classify*", lambda route: route.fulfill(json={"results": [result]}))

    page = visit(deepen, viewport=PHONE, is_mobile=True, has_touch=True)
    pick(page, SAMPLES / "ship.webp")
    of = card(page, "ship.webp")
    expect(of.locator(".block")).to_have_count(blocks)
    if blocks == 54:
        expect(of.locator(".headline")).to_contain_text("18 of 54 blocks")
        assert lit(of) == mask
    else:
        shows(of, server.classify(SAMPLES / "ship.webp"))
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    for item in of.locator(".block").all():
        box = item.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
