#include "bench/sim/sim_hve.h"

#include "bench/sim/hve_session.h"
#include "bench/sim/text.h"
#include "gateway/base/clock.h"
#include "gateway/listener.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define IDLE_MS 300000  /* Exchange's inactivity time-out */
#define HANG_MS 1800000 /* how long a hung session is kept */
#define REPLY_MAX 1024
#define DEFAULT_EHLO "SIZE,PIPELINING,DSN,ENHANCEDSTATUSCODES,8BITMIME,BINARYMIME,CHUNKING,SMTPUTF8"
#define THROTTLE_TEXT                                                                                                 \
    "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information. " \
    "[Hostname=" HVE_HOST "]"

struct hve {
    struct sim *sim;
    struct listener *listener;
    struct hve_session *sessions;
    bool closing;
};

static void end_of_delay(void *ctx)
{
    struct hve_session *session = ctx;
    session->waiting = false;
    if (buf_len(&session->held) > 0 &&
        stream_write(session->stream, buf_span(&session->held)) != 0) {
        hve_end(session);
    }
    buf_release(&session->held);
    if (session->close_after_held) {
        hve_end(session);
    } else if (!session->ending) {
        stream_deadline(session->stream, IDLE_MS);
        stream_resume(session->stream);
    }
}

/* Holds `line` back; input stops until it has left. */
static void hold_reply(struct hve_session *session, struct span line)
{
    if (buf_append(&session->held, line) != 0) {
        hve_end(session);
        return;
    }
    if (!session->waiting) {
        session->waiting = true;
        stream_pause(session->stream);
        loop_timer_start(session->sim->loop, &session->timer, session->delay_ms, end_of_delay,
                         session);
        session->delay_ms = 0;
    }
}

void hve_reply(struct hve_session *session, const char *format, ...)
{
    char line[REPLY_MAX];
    va_list args;
    if (session->ending) {
        return;
    }
    va_start(args, format);
    int len = vsnprintf(line, sizeof(line) - 2, format, args);
    va_end(args);
    size_t used = len < 0 ? 0 : (size_t)len;
    if (used > sizeof(line) - 3) {
        used = sizeof(line) - 3;
    }
    memcpy(line + used, "\r\n", 2);
    if (session->delay_ms > 0 || session->waiting) {
        hold_reply(session, span_make(line, used + 2));
    } else if (stream_write(session->stream, span_make(line, used + 2)) != 0) {
        hve_end(session);
    }
}

void hve_reject(struct hve_session *session, const char *line)
{
    ledger_counts(session->sim->ledger, SIM_HVE)->rejected++;
    hve_reply(session, "%s", line);
}

void hve_end(struct hve_session *session)
{
    if (session->waiting && buf_len(&session->held) > 0) {
        session->close_after_held = true;
        return;
    }
    session->ending = true;
    stream_close(session->stream);
}

void hve_clear(struct hve_session *session)
{
    session->in_mail = false;
    session->recipient_count = 0;
    session->refused_count = 0;
    session->message_bytes = 0;
    session->head_done = false;
    session->at_line_start = true;
    session->bare_lf = false;
    session->chunk_refused = false;
    buf_reset(&session->recipients);
    buf_reset(&session->head);
    buf_reset(&session->raw);
}

static void drop_session(struct hve_session *session)
{
    session->ending = true;
    stream_abort(session->stream);
}

static void throttle_session(struct hve_session *session, const struct fault *fault)
{
    ledger_counts(session->sim->ledger, SIM_HVE)->throttled++;
    hve_reply(session, "%s", fault->text[0] != '\0' ? fault->text : THROTTLE_TEXT);
    if (fault->has_retry_after) {
        closures_announce(session->sim->closures, span_of(session->account),
                          loop_now_ms(session->sim->loop), (int64_t)fault->retry_after_s * 1000,
                          true);
    }
}

static void answer_fault(struct hve_session *session, const struct fault *fault)
{
    struct ledger_counts *counts = ledger_counts(session->sim->ledger, SIM_HVE);
    char line[FAULT_TEXT_MAX + 16];
    if (fault->status != 0) {
        (void)snprintf(line, sizeof(line), "%u %s", fault->status,
                       fault->text[0] != '\0' ? fault->text : "injected by heave-sim");
    } else {
        (void)snprintf(line, sizeof(line), "%s", fault->text);
    }
    counts->rejected += line[0] == '5' ? 1 : 0;
    counts->throttled += line[0] == '4' ? 1 : 0;
    hve_reply(session, "%s", line);
    if (strncmp(line, "421", 3) == 0) {
        hve_end(session);
    }
}

bool hve_fault(struct hve_session *session, enum fault_phase phase, struct span subject)
{
    const struct fault *fault = faults_take(session->sim->faults, SIM_HVE, phase, subject);
    if (fault == NULL) {
        return false;
    }
    switch (fault->kind) {
    case FAULT_THROTTLE:
        throttle_session(session, fault);
        return true;
    case FAULT_STATUS:
    case FAULT_REPLY:
        answer_fault(session, fault);
        return true;
    case FAULT_TOKEN_EXPIRED:
        ledger_counts(session->sim->ledger, SIM_HVE)->auth_failures++;
        hve_reply(session, "535 5.7.143 Expired token");
        return true;
    case FAULT_LOST_ANSWER:
        ledger_counts(session->sim->ledger, SIM_HVE)->lost_answers++;
        drop_session(session);
        return true;
    case FAULT_RESET:
        drop_session(session);
        return true;
    case FAULT_HANG:
        session->waiting = true;
        stream_pause(session->stream);
        stream_deadline(session->stream, HANG_MS);
        return true;
    case FAULT_SLOW:
        session->delay_ms = fault->delay_ms;
        return false;
    case FAULT_BAD_CERTIFICATE:
        return false; /* taken where the connection is accepted */
    }
    UNREACHABLE();
}

static void say_hello(struct hve_session *session)
{
    const struct sim_conf *conf = session->sim->conf;
    struct span rest = span_of(conf->hve_ehlo != NULL ? conf->hve_ehlo : DEFAULT_EHLO);
    bool secure = stream_is_tls(session->stream) || conf->hve_tls == SIM_HVE_PLAIN;
    hve_reply(session, "250-" HVE_HOST " Hello [%s]", stream_peer_address(session->stream));
    if (!secure) {
        hve_reply(session, "250-STARTTLS");
    } else if (!conf->hve_open) {
        hve_reply(session, "250-AUTH LOGIN XOAUTH2");
    }
    while (rest.len > 0) {
        struct span word = span_cut(&rest, ',');
        const char *mark = rest.len > 0 ? "-" : " ";
        if (span_eq(word, SPAN_LIT("SIZE"))) {
            hve_reply(session, "250%sSIZE %" PRIu64, mark, conf->hve_max_bytes);
        } else {
            hve_reply(session, "250%s%.*s", mark, SPAN_FMT(word));
        }
    }
}

static void ehlo_command(struct hve_session *session, struct span argument)
{
    if (argument.len == 0) {
        hve_reject(session, "501 5.5.4 Invalid domain name");
        return;
    }
    hve_clear(session);
    session->said_hello = true;
    say_hello(session);
}

static void helo_command(struct hve_session *session, struct span argument)
{
    (void)argument;
    hve_clear(session);
    session->said_hello = true;
    hve_reply(session, "250 " HVE_HOST " Hello [%s]", stream_peer_address(session->stream));
}

static void starttls_command(struct hve_session *session, struct span argument)
{
    (void)argument;
    if (stream_is_tls(session->stream) || session->sim->conf->hve_tls != SIM_HVE_STARTTLS) {
        hve_reject(session, "503 5.5.1 Bad sequence of commands");
        return;
    }
    session->delay_ms = 0; /* a reply held back would come after the first TLS record */
    hve_reply(session, "220 2.0.0 SMTP server ready");
    session->said_hello = false;
    hve_clear(session);
    struct tls_context *tls = sim_tls_for(session->sim, SIM_HVE, session->sim->tls_smtp);
    if (!session->ending && stream_start_tls(session->stream, tls, NULL) != 0) {
        hve_end(session);
    }
}

/* "FROM:<a@b> SIZE=1" -> a@b; `*out_parameters` is what follows. */
static bool cut_path(struct span argument, const char *keyword, struct span *out_path,
                     struct span *out_parameters)
{
    struct span prefix = span_of(keyword);
    if (!span_istarts(argument, prefix)) {
        return false;
    }
    struct span rest = span_trim(span_make(argument.data + prefix.len, argument.len - prefix.len));
    size_t close = span_find(rest, '>');
    if (rest.len < 2 || rest.data[0] != '<' || close == rest.len) {
        return false;
    }
    *out_path = span_make(rest.data + 1, close - 1);
    *out_parameters = span_trim(span_make(rest.data + close + 1, rest.len - close - 1));
    return true;
}

static bool size_allowed(const struct sim_conf *conf, struct span parameters)
{
    while (parameters.len > 0) {
        struct span word = span_cut(&parameters, ' ');
        uint64_t size = 0;
        if (span_istarts(word, SPAN_LIT("SIZE="))) {
            return span_to_u64(span_make(word.data + 5, word.len - 5), UINT64_MAX, &size) == 0 &&
                   size <= conf->hve_max_bytes;
        }
    }
    return true;
}

/* Refuses what MAIL may not do in this session's state. */
static bool may_mail(struct hve_session *session)
{
    if (!session->said_hello) {
        hve_reject(session, "503 5.5.2 Send hello first");
    } else if (session->account[0] == '\0' && !session->sim->conf->hve_open) {
        hve_reject(
            session,
            "530 5.7.57 Client was not authenticated to send anonymous mail during MAIL FROM");
    } else if (session->token_expires_ms != 0 && clock_wall_ms() >= session->token_expires_ms) {
        ledger_counts(session->sim->ledger, SIM_HVE)->auth_failures++;
        hve_reply(session, "535 5.7.143 Expired token");
        hve_end(session);
    } else if (session->in_mail) {
        hve_reject(session, "503 5.5.2 Sender already specified");
    } else {
        return true;
    }
    return false;
}

static void mail_command(struct hve_session *session, struct span argument)
{
    struct span path = {0};
    struct span parameters = {0};
    if (!may_mail(session)) {
        return;
    }
    if (!cut_path(argument, "FROM:", &path, &parameters)) {
        hve_reject(session, "501 5.1.7 Invalid address");
        return;
    }
    if (!session->sim->conf->hve_open && !span_ieq(path, span_of(session->account))) {
        hve_reject(session,
                   "550 5.7.62 Sender address is not the address of the High Volume Email account");
        return;
    }
    if (!size_allowed(session->sim->conf, parameters)) {
        hve_reject(session, "552 5.3.4 Message size exceeds fixed maximum message size");
        return;
    }
    hve_clear(session);
    session->in_mail = true;
    hve_reply(session, "250 2.1.0 Sender OK");
}

static int add_recipient(struct hve_session *session, struct span path)
{
    if (session->ends == NULL) {
        session->ends = mem_alloc(session->sim->conf->max_recipients * sizeof(*session->ends));
    }
    int result = buf_append(&session->recipients, path);
    if (result == 0) {
        session->ends[session->recipient_count++] = (uint32_t)buf_len(&session->recipients);
    }
    return result;
}

static void rcpt_command(struct hve_session *session, struct span argument)
{
    const struct sim_conf *conf = session->sim->conf;
    struct span path = {0};
    struct span parameters = {0};
    if (!session->in_mail) {
        hve_reject(session, "503 5.5.2 Need mail command");
    } else if (!cut_path(argument, "TO:", &path, &parameters) || !text_is_address(path)) {
        session->refused_count++;
        hve_reject(session, "501 5.1.3 Invalid address");
    } else if (session->recipient_count >= conf->max_recipients) {
        session->refused_count++;
        ledger_counts(session->sim->ledger, SIM_HVE)->throttled++;
        hve_reply(session, "452 4.5.3 Too many recipients");
    } else if (!conf->hve_open && !sim_address_internal(conf, path)) {
        session->refused_count++;
        hve_reject(session,
                   "550 5.7.1 High Volume Email accounts cannot send to external recipients");
    } else if (add_recipient(session, path) != 0) {
        hve_reply(session, "452 4.3.1 Insufficient system resources");
    } else {
        hve_reply(session, "250 2.1.5 Recipient OK");
    }
}

static void rset_command(struct hve_session *session, struct span argument)
{
    (void)argument;
    hve_clear(session);
    hve_reply(session, "250 2.0.0 Resetting");
}

static void noop_command(struct hve_session *session, struct span argument)
{
    (void)argument;
    hve_reply(session, "250 2.0.0 OK");
}

static void quit_command(struct hve_session *session, struct span argument)
{
    (void)argument;
    hve_reply(session, "221 2.0.0 Service closing transmission channel");
    hve_end(session);
}

struct verb {
    struct span name;
    void (*run)(struct hve_session *session, struct span argument);
    enum fault_phase phase;
};
/* PHASE_REQUEST is no phase of HVE: those verbs have no faults. */
static const struct verb VERBS[] = {
    {{"MAIL", 4}, mail_command, PHASE_MAIL},
    {{"RCPT", 4}, rcpt_command, PHASE_RCPT},
    {{"DATA", 4}, hve_data_command, PHASE_DATA},
    {{"BDAT", 4},
     hve_chunk_command,
     PHASE_REQUEST}, /* asks for its faults itself: the chunk must be read */
    {{"RSET", 4}, rset_command, PHASE_REQUEST},
    {{"NOOP", 4}, noop_command, PHASE_REQUEST},
    {{"EHLO", 4}, ehlo_command, PHASE_EHLO},
    {{"HELO", 4}, helo_command, PHASE_EHLO},
    {{"STARTTLS", 8}, starttls_command, PHASE_STARTTLS},
    {{"AUTH", 4}, hve_auth_command, PHASE_AUTH},
    {{"QUIT", 4}, quit_command, PHASE_REQUEST},
};

static void run_command(struct hve_session *session, struct span line)
{
    struct span argument = line;
    struct span name = span_cut(&argument, ' ');
    for (size_t i = 0; i < sizeof(VERBS) / sizeof(VERBS[0]); i++) {
        if (!span_ieq(name, VERBS[i].name)) {
            continue;
        }
        if (hve_fault(session, VERBS[i].phase, line)) {
            if (VERBS[i].phase == PHASE_DATA) {
                hve_clear(session);
            }
        } else {
            VERBS[i].run(session, span_trim(argument));
        }
        return;
    }
    hve_reject(session, "500 5.3.3 Unrecognized command");
}

/* One line of commands or of an AUTH exchange. Returns the bytes used, 0 when the line is not
 * complete. */
static size_t read_line(struct hve_session *session, struct span bytes)
{
    size_t end = span_find(bytes, '\n');
    if (end == bytes.len) {
        if (bytes.len > HVE_LINE_MAX) {
            hve_reject(session, "500 5.5.2 Line too long");
            hve_end(session);
            return bytes.len;
        }
        return 0;
    }
    struct span line = span_make(bytes.data, end);
    if (line.len > 0 && line.data[line.len - 1] == '\r') {
        line.len--;
    }
    if (session->state == HVE_COMMAND) {
        run_command(session, line);
    } else {
        hve_auth_line(session, line);
    }
    return end + 1;
}

static size_t read_some(struct hve_session *session, struct span bytes)
{
    switch (session->state) {
    case HVE_DATA:
        return hve_data_read(session, bytes);
    case HVE_CHUNK:
        return hve_chunk_read(session, bytes);
    case HVE_COMMAND:
    case HVE_AUTH_USER:
    case HVE_AUTH_PASSWORD:
    case HVE_AUTH_TOKEN:
        return read_line(session, bytes);
    }
    UNREACHABLE();
}

static size_t on_data(void *ctx, struct span bytes)
{
    struct hve_session *session = ctx;
    size_t used = 0;
    stream_deadline(session->stream, IDLE_MS);
    while (used < bytes.len && !session->waiting && !session->ending) {
        size_t step = read_some(session, span_make(bytes.data + used, bytes.len - used));
        if (step == 0) {
            break;
        }
        used += step;
    }
    return session->ending ? bytes.len : used;
}

static void on_open(void *ctx)
{
    struct hve_session *session = ctx;
    char date[CLOCK_TEXT_MAX];
    stream_deadline(session->stream, IDLE_MS);
    if (session->greeted) {
        return; /* TLS is up after STARTTLS: the client speaks next */
    }
    session->greeted = true;
    ledger_counts(session->sim->ledger, SIM_HVE)->requests++;
    if (!hve_fault(session, PHASE_CONNECT, (struct span){0})) {
        clock_rfc5322(clock_wall_ms(), date);
        hve_reply(session,
                  "220 " HVE_HOST " Microsoft ESMTP MAIL Service ready at %s [08DE2A6028D26C22]",
                  date);
    }
}

static void on_deadline(void *ctx)
{
    struct hve_session *session = ctx;
    session->waiting = false;
    hve_reply(session, "451 4.7.0 Timeout waiting for client input");
    hve_end(session);
}

static void on_close(void *ctx, int status, const char *why)
{
    struct hve_session *session = ctx;
    (void)status; /* sessions of a simulator end in every way there is; the ledger is what counts */
    (void)why;
    loop_timer_stop(&session->timer);
    if (session->prev != NULL) {
        session->prev->next = session->next;
    } else {
        session->hve->sessions = session->next;
    }
    if (session->next != NULL) {
        session->next->prev = session->prev;
    }
    buf_release(&session->recipients);
    buf_release(&session->head);
    buf_release(&session->raw);
    buf_release(&session->held);
    mem_free(session->ends);
    struct hve *hve = session->hve;
    mem_free(session);
    if (hve->closing && hve->sessions == NULL) {
        mem_free(hve);
    }
}

static const struct stream_ops HVE_OPS = {
    .on_open = on_open,
    .on_data = on_data,
    .on_deadline = on_deadline,
    .on_close = on_close,
};

static struct hve_session *new_session(struct hve *hve)
{
    const struct sim_conf *conf = hve->sim->conf;
    struct hve_session *session = mem_zero(sizeof(*session));
    session->hve = hve;
    session->sim = hve->sim;
    buf_init(&session->recipients, (size_t)conf->max_recipients * 1024);
    buf_init(&session->head, HVE_HEAD_MAX);
    buf_init(&session->raw, (size_t)conf->hve_max_bytes + HVE_HEAD_MAX);
    buf_init(&session->held, 4096);
    session->at_line_start = true;
    return session;
}

static int on_accept(void *ctx, uv_stream_t *socket)
{
    struct hve *hve = ctx;
    struct sim *sim = hve->sim;
    /* Room for a burst of body bytes; commands stay far below it. */
    const struct stream_limits limits = {.max_unread_bytes = (size_t)256 * 1024};
    bool implicit = sim->conf->hve_tls == SIM_HVE_IMPLICIT;
    struct tls_context *tls = implicit ? sim_tls_for(sim, SIM_HVE, sim->tls_smtp) : NULL;
    struct hve_session *session = new_session(hve);
    int result = stream_accept(sim->loop, socket, tls, &HVE_OPS, session, &limits,
                               &session->stream);
    if (result != 0) {
        mem_free(session);
        return result;
    }
    session->next = hve->sessions;
    if (hve->sessions != NULL) {
        hve->sessions->prev = session;
    }
    hve->sessions = session;
    return 0;
}

int hve_open(struct sim *sim, struct hve **out, struct err *err)
{
    char bind_text[128];
    (void)snprintf(bind_text, sizeof(bind_text), "%s:%" PRIu64, sim->conf->bind,
                   sim->conf->ports[SIM_HVE]);
    struct hve *hve = mem_zero(sizeof(*hve));
    hve->sim = sim;
    int result = listener_open(sim->loop, bind_text, on_accept, hve, &hve->listener, err);
    if (result != 0) {
        mem_free(hve);
        return result;
    }
    sim->ports[SIM_HVE] = listener_port(hve->listener);
    *out = hve;
    return 0;
}

void hve_close(struct hve **hve)
{
    struct hve *closing = *hve;
    if (closing == NULL) {
        return;
    }
    *hve = NULL;
    listener_close(&closing->listener);
    closing->closing = true;
    if (closing->sessions == NULL) {
        mem_free(closing);
        return;
    }
    for (struct hve_session *session = closing->sessions; session != NULL;
         session = session->next) {
        drop_session(session);
    }
}
