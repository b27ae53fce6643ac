"""Nginx's traps, and an nginx that is not ours."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.bluegreen.app import App, parse
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import BadInput, CutoverUnproven, EngineHiccup, Failed, Unavailable
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.proxy import log_config, provided
from tasks.bluegreen.recovery import plan_recovery
from tasks.bluegreen.scripts import lock_file
from tasks.bluegreen.site import render_site
from tasks.observe import observe
from tests.lab.images import PROXY
from tests.lab.nginx import MAIN, OwnNginx, until_it_answers
from tests.lab.shop import Shop

TEMPLATE = (Path(__file__).parents[1] / "templates" / "site.conf.j2").read_text()

LOG_IN_FILE = ["sh", "-c", "rm /var/log/nginx/error.log && exec nginx -g 'daemon off;'"]


def test_an_nginx_of_the_user_s_own_serves_its_other_sites_all_the_while(shop: Shop) -> None:
    nginx = OwnNginx(shop)
    before = nginx.files()
    shop.deploy("one")
    with shop.visitors() as heard:
        shop.deploy("two")
        assert nginx.other() == "the other site\n"
        shop.rollback()
    assert heard.lost == 0, heard.losses
    assert set(heard.releases) == {"one", "two"}
    assert nginx.files() == before
    assert nginx.other() == "the other site\n"
    assert shop.exec("ls /etc/nginx/conf.d").split() == [f"nonstop-{shop.name}.conf", "other.conf"]


def test_an_nginx_of_the_user_s_own_comes_back_after_a_crash_as_before(shop: Shop) -> None:
    OwnNginx(shop)
    shop.api.update_container(shop.proxy, restart_policy={"Name": "unless-stopped"})
    shop.deploy("one")
    shop.deploy("two")
    shop.crash(shop.proxy)
    until_it_answers(shop)
    assert shop.releases() == {"two"}


def test_a_master_that_is_another_user_s_than_the_container_is_told_too(shop: Shop) -> None:
    made = shop.api.create_container(
        PROXY,
        name=shop.proxy,
        command=["sleep", "600"],
        user="www-data",
        labels={"nonstop.lab.shop": shop.name},
    )
    shop.api.start(made)
    shop.api.exec_start(shop.api.exec_create(made, ["nginx"], user="0"))
    with Engine() as engine:
        nginx = Nginx(engine, shop.app().proxy)
        before = nginx.accepting()
        nginx.hup()
        while not (now := nginx.accepting()) or now & before:
            time.sleep(0.1)
        kill = ["sh", "-c", "kill -KILL $(cat /run/nginx.pid)"]
        shop.api.exec_start(shop.api.exec_create(made, kill, user="0"))
        with pytest.raises(EngineHiccup, match="no master process was found"):
            nginx.hup()


def test_a_proxy_that_does_not_read_the_sites_is_refused(shop: Shop) -> None:
    OwnNginx(shop, main=MAIN.replace("include /etc/nginx/conf.d/*.conf;", ""))
    with pytest.raises(BadInput, match=r"does not read /etc/nginx/conf.d/\*.conf: add `include"):
        shop.deploy("one")
    assert shop.containers() == {}
    assert "nonstop-" not in shop.exec("ls /etc/nginx/conf.d")


def test_a_site_s_file_that_is_mounted_by_itself_is_not_taken_for_written(
    shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "site").touch()
    own = f"{tmp_path}/site:/etc/nginx/conf.d/nonstop-{shop.name}.conf"
    OwnNginx(shop, host={"binds": [own]})
    with pytest.raises(
        EngineHiccup, match=r"Writing /etc/nginx/conf.d/.* failed: .*busy"
    ) as caught:
        shop.deploy("one")
    assert caught.value.serves == "No release serves; there was none before."
    assert shop.containers() == {}


def test_a_directory_that_cannot_be_written_fails_in_words_and_blue_serves(shop: Shop) -> None:
    OwnNginx(shop)
    shop.deploy("one")
    # root may write anywhere, so the file's place is taken by a directory of the same name
    shop.exec(f"mkdir -p /etc/nginx/conf.d/.nonstop-{shop.name}.conf.new/taken")
    with pytest.raises(Failed, match=r"Writing /etc/nginx/conf.d/nonstop-.*failed") as caught:
        shop.deploy("two")
    assert caught.value.serves == "Release 1 serves, as before."
    assert shop.releases() == {"one"}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("server { listen 80; server_name a.example.com; lisen 81; }", "unknown directive"),
        ("server { location / { proxy_pass http://gone.invalid; } }", "host not found in upstream"),
    ],
)
def test_another_site_that_is_broken_is_noticed_before_anything_is_touched(
    shop: Shop, broken: str, words: str
) -> None:
    nginx = OwnNginx(shop)
    shop.deploy("one")
    nginx.write({"conf.d/broken.conf": broken})
    before = shop.exec("cat /etc/nginx/conf.d/*"), shop.containers()
    with pytest.raises(Unavailable, match="does not load as it is: repair it first") as caught:
        shop.deploy("two")
    assert words in caught.value.evidence
    assert (shop.exec("cat /etc/nginx/conf.d/*"), shop.containers()) == before
    assert shop.releases() == {"one"}


def test_a_reload_that_is_accepted_and_not_applied_is_undone(shop: Shop, tmp_path: Path) -> None:
    own = tmp_path / "site.conf.j2"
    zone = "limit_req_zone %s zone={{ upstream }}_zone:1m rate=9999r/s;\n"
    own.write_text(zone % "$binary_remote_addr" + TEMPLATE)
    shop.deploy("one", proxy={"template": str(own)})
    before = shop.sites()
    own.write_text(
        zone % "$http_user_agent" + TEMPLATE
    )  # nginx -t says yes, the reload exits with 0
    with shop.visitors() as heard, pytest.raises(CutoverUnproven) as caught:
        shop.deploy("two", proxy={"template": str(own)})
    assert "while previously it used" in caught.value.evidence
    assert heard.lost == 0, heard.losses
    assert set(heard.releases) == {"one"}
    assert shop.sites() == before
    assert set(shop.containers()) == {"1-1", "1-2"}


def test_another_container_s_nginx_in_sight_is_not_taken_for_the_proxy_s(shop: Shop) -> None:
    labels = {"nonstop.lab.shop": shop.name}
    other = shop.api.create_container(PROXY, ["nginx", "-g", "daemon off;"], labels=labels)["Id"]
    shop.api.start(other)
    OwnNginx(shop, host={"pid_mode": "host"})
    with Engine() as engine:
        nginx = Nginx(engine, shop.app().proxy)
        seen = engine.processes(other)
        assert nginx.accepting() < {pid for pid, _ in engine.processes(shop.proxy)}
        nginx.reload(shop.name, None)
        assert engine.processes(other) == seen


def test_workers_that_cannot_be_listed_are_not_taken_for_none(shop: Shop) -> None:
    OwnNginx(shop)
    with Engine() as engine:
        nginx = Nginx(engine, shop.app().proxy)
        assert nginx.accepting()
        shop.exec("mv $(command -v grep) /tmp")
        with pytest.raises(EngineHiccup, match="no grep"):
            nginx.accepting()


def test_only_the_generation_that_was_asked_for_proves_a_cutover(shop: Shop) -> None:
    shop.deploy("one")
    with Engine() as engine:
        nginx = Nginx(engine, shop.app().proxy)
        live = nginx.look(shop.name).live
        assert live
        for _ in range(5):
            before = nginx.accepting()
            nginx.reload(shop.name, live.generation)
            assert not before & nginx.accepting()  # nobody of before takes a connection any more
        with pytest.raises(CutoverUnproven):
            nginx.reload(shop.name, "0123456789abcdef")  # its workers change, its site doesn't


def test_a_reload_that_takes_long_is_good_whatever_else_nginx_complains_of(shop: Shop) -> None:
    main = MAIN.replace("error.log;", "error.log warn;")
    nginx = OwnNginx(shop, main=main, command=LOG_IN_FILE, environment={"TZ": "EAST-9"})
    shop.deploy("one")
    nginx.write({"conf.d/broken.conf": "lisen 80;"})
    shop.exec("kill -HUP 1; sleep 1; rm /etc/nginx/conf.d/broken.conf; sleep 1")
    site = "server {{ listen 80; server_name twice.example.com; return 200 {}; }}"
    nginx.write({f"conf.d/{number}.conf": site.format(number) for number in (1, 2)})
    with Engine() as engine:
        proxy = Nginx(engine, shop.app().proxy)
        live = proxy.look(shop.name).live
        assert live
        busy = max(proxy.accepting())
        # One that waits for its disk.
        shop.exec(f"kill -STOP {busy}; (sleep 3; kill -CONT {busy}) >/dev/null 2>&1 &")
        began = time.monotonic()
        proxy.reload(shop.name, live.generation)
        assert time.monotonic() - began > 2
    logged = shop.exec("cat /var/log/nginx/error.log")
    assert '[emerg] 1#1: unknown directive "lisen"' in logged
    assert '[warn] 1#1: conflicting server name "twice.example.com"' in logged


def test_why_nginx_refuses_is_found_in_its_own_time_zone(shop: Shop) -> None:
    nginx = OwnNginx(shop, command=LOG_IN_FILE, environment={"TZ": "WEST9"})
    nginx.write({"conf.d/broken.conf": "lisen 80;"})
    with Engine() as engine:
        began = time.monotonic()
        with pytest.raises(CutoverUnproven, match="did not take the new") as caught:
            Nginx(engine, shop.app().proxy).reload(shop.name, None)
    assert 'unknown directive "lisen"' in caught.value.evidence
    assert time.monotonic() - began < 5


def test_a_port_that_another_process_has_is_no_cutover(shop: Shop, tmp_path: Path) -> None:
    shop.deploy("one")
    before = shop.sites()
    made = shop.api.exec_create(shop.proxy, ["python3", "-m", "http.server", "8099"])
    shop.api.exec_start(made["Id"], detach=True)
    own = tmp_path / "site.conf.j2"
    own.write_text(TEMPLATE + "server { listen 8099; return 204; }\n")
    with pytest.raises((CutoverUnproven, BadInput)) as caught:
        shop.deploy("two", proxy={"template": str(own)})
    assert "8099" in caught.value.evidence
    assert shop.sites() == before
    assert shop.releases() == {"one"}
    assert set(shop.containers()) == {"1-1", "1-2"}


def test_two_apps_share_a_proxy_by_their_host_names(shop: Shop) -> None:
    nginx = OwnNginx(shop)
    shop.deploy("one")
    second = Shop(shop.api)
    try:
        second.proxy, second.port, second.url = shop.proxy, shop.port, shop.url
        second.description["proxy"] = shop.description["proxy"]
        second.host = "second.example.com"
        first = shop.exec(f"cat /etc/nginx/conf.d/nonstop-{shop.name}.conf")
        with pytest.raises(
            BadInput, match=r"another site .* has its host name shop.example.com already"
        ):
            second.deploy("two", hosts=["shop.example.com"])
        second.deploy("two", hosts=[second.host])
        assert shop.exec(f"cat /etc/nginx/conf.d/nonstop-{shop.name}.conf") == first
        assert (shop.releases(), second.releases()) == ({"one"}, {"two"})
        assert nginx.other() == "the other site\n"
    finally:
        second.proxy = ""
        second.close()


def test_sites_of_others_that_share_a_name_are_their_own_affair(shop: Shop) -> None:
    nginx = OwnNginx(shop)
    site = "server {{ listen 80; server_name twice.example.com; return 200 {}; }}"
    nginx.write({f"conf.d/{number}.conf": site.format(number) for number in (1, 2)})
    shop.deploy("one")
    assert shop.releases() == {"one"}


@pytest.mark.parametrize(
    ("hosts", "name", "visited"),
    [
        ((), "localhost", "any.example.org"),
        (["*.example.org"], "nonstop.example.org", "a.example.org"),
    ],
)
def test_an_app_of_many_names_is_watched_by_one_that_no_other_site_has(
    shop: Shop, hosts: list[str], name: str, visited: str
) -> None:
    """As behind the official image's default.conf, which has the name localhost."""
    nginx = OwnNginx(shop)
    nginx.write({"conf.d/default.conf": f"server {{ listen 80; server_name {name}; return 200; }}"})
    shop.host = visited
    shop.deploy("one", hosts=hosts)
    shop.deploy("two", hosts=hosts)
    assert shop.releases() == {"two"}
    assert "X-Release" not in shop.get(Host=name).headers


def test_behind_a_proxy_that_was_renamed_all_goes_on(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.deploy("one")
    shop.deploy("two")
    edge = {"container": f"{shop.name}-edge"}
    shop.api.rename(shop.proxy, edge["container"])
    shop.deploy("three", proxy=edge)
    assert "is left alone" not in caplog.text
    states = {"2-1": "exited", "2-2": "exited", "3-1": "running", "3-2": "running"}
    assert shop.containers() == states
    shop.rollback()
    assert shop.releases() == {"two"}
    assert not plan_recovery(observe.fn(shop.name)).needed


def test_a_proxy_whose_maker_died_before_it_started_is_made_anew(shop: Shop) -> None:
    labels = {"nonstop.proxy": shop.proxy}
    shop.api.create_container(PROXY, name=shop.proxy, labels=labels)
    shop.deploy("one")
    assert shop.releases() == {"one"}


def test_runs_that_make_the_proxy_at_once_share_it(shop: Shop) -> None:
    def ensure(_: int) -> str:
        with Engine() as engine, provided(engine, shop.app()) as nginx:
            return nginx.id

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(ensure, range(6)))) == 1
    shop.deploy("one")
    assert shop.releases() == {"one"}


def test_a_new_proxy_goes_again_with_a_run_that_fails_unless_another_uses_it(shop: Shop) -> None:
    def fail(engine: Engine, meanwhile: str) -> None:
        with provided(engine, shop.app()):
            shop.exec(meanwhile)
            raise RuntimeError("this run")

    with Engine() as engine:
        for meanwhile, stays in (("true", False), (f"touch {lock_file(shop.name)}", True)):
            with pytest.raises(RuntimeError, match="this run"):
                fail(engine, meanwhile)
            assert bool(engine.inspect(shop.proxy)) is stays
    shop.deploy("one")
    assert shop.releases() == {"one"}


def test_the_log_of_a_new_proxy_does_not_fill_the_disk(shop: Shop) -> None:
    shop.deploy("one")
    log = shop.api.inspect_container(shop.proxy)["HostConfig"]["LogConfig"]
    if shop.api.info()["LoggingDriver"] == "json-file":
        assert log["Type"] == "json-file"
        assert log["Config"] | {"max-size": "20m", "max-file": "5"} == log["Config"]
    assert log_config("journald") is None
    # as of an earlier version: removed and made anew, it serves what it served
    shop.api.remove_container(shop.proxy, force=True)
    shop.deploy("two")
    assert shop.releases() == {"two"}


def test_a_large_upload_passes_through_a_new_proxy(serving: Shop) -> None:
    answer = httpx.post(f"{serving.url}/posts", content=b"x" * (2 << 20), trust_env=False)
    assert (answer.status_code, answer.text) == (200, "counted")


def test_nginx_starts_whatever_became_of_the_replicas(shop: Shop) -> None:
    shop.deploy("one")
    for replica in ("1-1", "1-2"):
        shop.api.remove_container(shop.container(replica), force=True)
    shop.api.restart(shop.proxy, timeout=5)
    shop.deploy("two")
    assert shop.releases() == {"two"}


def test_replicas_keep_their_addresses_in_whatever_order_all_is_started(shop: Shop) -> None:
    shop.deploy("one")
    shop.deploy("two")
    for name in (shop.proxy, shop.container("2-1"), shop.container("2-2")):
        shop.api.kill(name)
    for name in (shop.proxy, shop.container("2-2"), shop.container("2-1")):
        shop.api.start(name)
    until_it_answers(shop)
    assert shop.releases() == {"two"}
    assert shop.live() == 2


def test_requests_to_replicas_share_connections(serving: Shop) -> None:
    count = f"cat /proc/net/tcp | grep -c ':{3000:04X} '"
    before = int(serving.exec(count))
    for _ in range(200):
        assert serving.get().is_success
    assert int(serving.exec(count)) - before < 50


def test_a_visitor_cannot_claim_another_address(serving: Shop) -> None:
    site = serving.sites()
    assert "X-Forwarded-For $remote_addr;" in site
    assert "proxy_add_x_forwarded_for" not in site


def test_a_proxy_that_is_not_nginx_or_not_there_or_stopped_is_refused(shop: Shop) -> None:
    proxy = {"image": None}
    with pytest.raises(Unavailable, match="There is no proxy: no container is named"):
        shop.deploy("one", proxy=proxy)
    shop.api.create_container(
        "nonstop-lab-hello:v1", name=shop.proxy, labels={"nonstop.lab.shop": shop.name}
    )
    with pytest.raises(Unavailable, match="is created: start it with `docker start"):
        shop.deploy("one", proxy=proxy)
    shop.api.start(shop.proxy)
    with pytest.raises(Unavailable, match=r"is not nginx|There is no nginx in"):
        shop.deploy("one", proxy=proxy)
    assert shop.containers() == {}


def shape(app: App, version: tuple[int, ...] = (1, 30, 0)) -> list[str]:
    """The site without everything between the characters that structure a configuration."""
    text = render_site(app, 1, ("10.0.0.1",), version).text
    return [character for character in text if character in "{};\n\"'#"]


NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,20}[a-z0-9]\Z")
HOSTS = st.text(max_size=30) | st.from_regex(r"\A(\*\.)?[a-z0-9-]+(\.[a-z0-9;{}$ \n-]+)*\Z")


@given(NAMES, HOSTS, st.integers(1, 65535))
def test_text_from_parameters_cannot_break_out_of_its_place(
    name: str, host: str, port: int
) -> None:
    try:
        app = parse({"name": name, "image": "shop:1", "port": port, "hosts": [host]})
    except BadInput:
        return
    plain = parse({"name": "shop", "image": "shop:1", "port": 80, "hosts": ["shop.example.com"]})
    assert shape(app) == shape(plain)


def test_an_old_nginx_gets_no_directive_that_it_does_not_know() -> None:
    app = parse({"name": "shop", "image": "shop:1", "port": 80})
    assert "keepalive_min_timeout" in render_site(app, 1, ("10.0.0.1",), (1, 27, 4)).text
    assert "keepalive_min_timeout" not in render_site(app, 1, ("10.0.0.1",), (1, 26, 3)).text
