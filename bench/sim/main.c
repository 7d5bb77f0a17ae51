/* heave-sim: start, the ready line, signals, stop. */
#include "bench/sim/control.h"
#include "bench/sim/sim.h"
#include "bench/sim/sim_acs.h"
#include "bench/sim/sim_graph.h"
#include "bench/sim/sim_hve.h"
#include "bench/sim/sim_tls.h"
#include "bench/sim/sim_token.h"
#include "gateway/base/codec.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct services {
    struct hve *hve;
    struct acs *acs;
    struct graph *graph;
    struct token_service *token;
    struct control *control;
};

struct tls_context *sim_tls_for(struct sim *sim, enum sim_service service,
                                struct tls_context *usual)
{
    const struct fault *fault = faults_take(sim->faults, service, PHASE_TLS, (struct span){0});
    return fault != NULL ? sim->tls_bad : usual; /* bad_certificate is the only kind there */
}

void sim_body_path(const struct sim *sim, enum sim_service service, uint64_t transaction, char *out,
                   size_t room)
{
    (void)snprintf(out, room, "%s/%s-%" PRIu64 ".%s", sim->conf->keep_bodies,
                   sim_service_name(service), transaction, service == SIM_ACS ? "json" : "eml");
}

void sim_keep_body(struct sim *sim, enum sim_service service, uint64_t transaction,
                   struct span body)
{
    char path[1200];
    if (sim->conf->keep_bodies == NULL) {
        return;
    }
    sim_body_path(sim, service, transaction, path, sizeof(path));
    FILE *file = fopen(path, "we");
    bool good = file != NULL && (body.len == 0 || fwrite(body.data, 1, body.len, file) == body.len);
    if (file != NULL && fclose(file) != 0) {
        good = false;
    }
    if (!good) {
        (void)fprintf(stderr, "heave-sim: %s cannot be written: %s.\n", path, strerror(errno));
    }
}

static int make_dir(const char *path, struct err *err)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        return err_set(err, ERR_IO, "The directory %s cannot be made: %s.", path, strerror(errno));
    }
    return 0;
}

static int load_tls(struct sim *sim, const struct sim_tls_files *files, struct err *err)
{
    struct tls_server_conf conf = {
        .cert_file = files->server, .key_file = files->server_key, .min_version = TLS_1_2};
    int result = tls_server_new(&conf, &sim->tls_smtp, err);
    if (result == 0) {
        conf.offer_h2 = !sim->conf->http1_only;
        result = tls_server_new(&conf, &sim->tls_http, err);
    }
    if (result == 0) {
        conf = (struct tls_server_conf){
            .cert_file = files->bad, .key_file = files->bad_key, .min_version = TLS_1_2};
        result = tls_server_new(&conf, &sim->tls_bad, err);
    }
    return result;
}

static int add_faults(struct sim *sim, struct err *err)
{
    int result = 0;
    for (size_t i = 0; result == 0 && i < sim->conf->faults.count; i++) {
        result = faults_add_spec(sim->faults, span_of(sim->conf->faults.items[i]), err);
    }
    return result;
}

static int prepare(struct sim *sim, struct sim_tls_files *files, struct err *err)
{
    int result = make_dir(sim->conf->dir, err);
    if (result == 0 && sim->conf->keep_bodies != NULL) {
        result = make_dir(sim->conf->keep_bodies, err);
    }
    if (result == 0) {
        result = sim_tls_prepare(sim->conf->dir, files, err);
    }
    if (result == 0) {
        result = load_tls(sim, files, err);
    }
    return result == 0 ? add_faults(sim, err) : result;
}

static int open_services(struct sim *sim, struct services *services, struct err *err)
{
    int result = hve_open(sim, &services->hve, err);
    if (result == 0) {
        result = acs_open(sim, &services->acs, err);
    }
    if (result == 0) {
        result = graph_open(sim, &services->graph, err);
    }
    if (result == 0) {
        result = token_open(sim, &services->token, err);
    }
    if (result == 0) {
        result = control_open(sim, services->acs, services->graph, &services->control, err);
    }
    return result;
}

static void close_services(struct services *services)
{
    control_close(&services->control);
    token_close(&services->token);
    graph_close(&services->graph);
    acs_close(&services->acs);
    hve_close(&services->hve);
}

static int ready_text(const struct sim *sim, const struct sim_tls_files *files, struct buf *out)
{
    json_t *json = json_pack("{s:b, s:i, s:i, s:i, s:i, s:i, s:s, s:i}", "ready", 1, "hve",
                             sim->ports[SIM_HVE], "acs", sim->ports[SIM_ACS], "graph",
                             sim->ports[SIM_GRAPH], "token", sim->ports[SIM_TOKEN], "control",
                             sim->ports[SIM_PORT_CONTROL], "ca", files->ca, "pid", (int)getpid());
    char *text = json != NULL ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (text == NULL) {
        return ERR_NOMEM;
    }
    int result = buf_printf(out, "%s\n", text);
    free(text);
    return result;
}

/* DIR/sim.json appears whole or not at all: it is written beside and moved. */
static int write_ready_file(const struct sim *sim, struct span text, struct err *err)
{
    char path[1200];
    char beside[1200];
    (void)snprintf(path, sizeof(path), "%s/sim.json", sim->conf->dir);
    (void)snprintf(beside, sizeof(beside), "%s/sim.json.new", sim->conf->dir);
    FILE *file = fopen(beside, "we");
    bool good = file != NULL && fwrite(text.data, 1, text.len, file) == text.len;
    if (file != NULL && fclose(file) != 0) {
        good = false;
    }
    if (!good || rename(beside, path) != 0) {
        return err_set(err, ERR_IO, "%s cannot be written: %s.", path, strerror(errno));
    }
    return 0;
}

static int announce(const struct sim *sim, const struct sim_tls_files *files, struct err *err)
{
    struct buf text;
    buf_init(&text, 4096);
    int result = ready_text(sim, files, &text);
    if (result != 0) {
        buf_release(&text);
        return err_set(err, result, "The ready line does not fit.");
    }
    result = write_ready_file(sim, buf_span(&text), err);
    if (result == 0 && (fwrite(buf_span(&text).data, 1, buf_len(&text), stdout) != buf_len(&text) ||
                        fflush(stdout) != 0)) {
        result = err_set(err, ERR_IO, "The ready line cannot be written: %s.", strerror(errno));
    }
    buf_release(&text);
    return result;
}

static void on_signal(uv_signal_t *handle, int number)
{
    (void)number;
    loop_stop(handle->data);
}

static int watch_signals(struct sim *sim, uv_signal_t handles[2], struct err *err)
{
    static const int NUMBERS[] = {SIGTERM, SIGINT};
    for (size_t i = 0; i < 2; i++) {
        handles[i].data = sim->loop;
        if (uv_signal_init(loop_uv(sim->loop), &handles[i]) != 0 ||
            uv_signal_start(&handles[i], on_signal, NUMBERS[i]) != 0) {
            return err_set(err, ERR_IO, "Signals cannot be watched.");
        }
    }
    return 0;
}

static int serve(struct sim *sim, struct err *err)
{
    struct sim_tls_files files;
    struct services services = {0};
    uv_signal_t handles[2];
    int result = prepare(sim, &files, err);
    if (result == 0) {
        result = open_services(sim, &services, err);
    }
    if (result == 0) {
        result = watch_signals(sim, handles, err);
    }
    if (result == 0) {
        result = announce(sim, &files, err);
    }
    if (result == 0) {
        loop_run(sim->loop);
    }
    close_services(&services);
    loop_free(&sim->loop); /* handles/ and what is left in `services` end here */
    return result;
}

int main(int argc, char **argv)
{
    struct sim_conf conf;
    struct err err = {0};
    int result = sim_conf_read(argc, argv, &conf, &err);
    if (result != 0) {
        if (result < 0) {
            (void)fprintf(stderr, "heave-sim: %s\n", err.text);
        }
        return result < 0 ? 2 : 0;
    }
    (void)signal(SIGPIPE, SIG_IGN); /* a peer that went away is an error of write */
    struct sim sim = {
        .conf = &conf,
        .loop = loop_new("sim"),
        .ledger = ledger_new((size_t)conf.ledger_entries),
        .faults = faults_new(conf.seed),
        .closures = closures_new((int64_t)conf.retry_grace_ms),
    };
    codec_random(sim.token_key, sizeof(sim.token_key));
    result = serve(&sim, &err);
    if (result != 0) {
        (void)fprintf(stderr, "heave-sim: %s\n", err.text);
    }
    tls_context_unref(&sim.tls_smtp);
    tls_context_unref(&sim.tls_http);
    tls_context_unref(&sim.tls_bad);
    ledger_free(&sim.ledger);
    faults_free(&sim.faults);
    closures_free(&sim.closures);
    mem_wipe(sim.token_key, sizeof(sim.token_key));
    return result == 0 ? 0 : 1;
}
