#include "bench/sim/fault.h"

#include "gateway/base/codec.h"

#include <stdio.h>
#include <stdlib.h>

#define FAULTS_MAX 64

struct faults {
    struct fault items[FAULTS_MAX];
    size_t count;
    uint64_t random;
    uint32_t waiting[SIM_SERVICE_COUNT][FAULT_PHASE_COUNT];
};

static const char *const KIND_NAMES[FAULT_KIND_COUNT] = {
    [FAULT_THROTTLE] = "throttle",
    [FAULT_STATUS] = "status",
    [FAULT_REPLY] = "reply",
    [FAULT_LOST_ANSWER] = "lost_answer",
    [FAULT_HANG] = "hang",
    [FAULT_SLOW] = "slow",
    [FAULT_RESET] = "reset",
    [FAULT_TOKEN_EXPIRED] = "token_expired",
    [FAULT_BAD_CERTIFICATE] = "bad_certificate",
};
static const char *const PHASE_NAMES[FAULT_PHASE_COUNT] = {
    [PHASE_TLS] = "tls",           [PHASE_CONNECT] = "connect",   [PHASE_EHLO] = "ehlo",
    [PHASE_STARTTLS] = "starttls", [PHASE_AUTH] = "auth",         [PHASE_MAIL] = "mail",
    [PHASE_RCPT] = "rcpt",         [PHASE_DATA] = "data",         [PHASE_END] = "end",
    [PHASE_REQUEST] = "request",   [PHASE_ACCEPTED] = "accepted",
};

struct faults *faults_new(uint64_t seed)
{
    struct faults *faults = mem_zero(sizeof(*faults));
    if (seed == 0) {
        codec_random(&seed, sizeof(seed));
    }
    faults->random = seed != 0 ? seed : 1; /* xorshift stays at 0 for ever */
    return faults;
}

void faults_free(struct faults **faults)
{
    mem_free(*faults);
    *faults = NULL;
}

void faults_clear(struct faults *faults)
{
    faults->count = 0;
    memset(faults->waiting, 0, sizeof(faults->waiting));
}

static int find_name(const char *const *names, size_t count, struct span name)
{
    for (size_t i = 0; i < count; i++) {
        if (span_eq(name, span_of(names[i]))) {
            return (int)i;
        }
    }
    return -1;
}

static enum fault_phase default_phase(enum sim_service service, enum fault_kind kind)
{
    switch (kind) {
    case FAULT_BAD_CERTIFICATE:
        return PHASE_TLS;
    case FAULT_LOST_ANSWER:
        return PHASE_ACCEPTED;
    case FAULT_TOKEN_EXPIRED:
        return service == SIM_HVE ? PHASE_AUTH : PHASE_REQUEST;
    case FAULT_HANG:
    case FAULT_SLOW:
        return service == SIM_HVE ? PHASE_END : PHASE_REQUEST;
    case FAULT_THROTTLE:
    case FAULT_STATUS:
    case FAULT_REPLY:
    case FAULT_RESET:
        return service == SIM_HVE ? PHASE_DATA : PHASE_REQUEST;
    }
    UNREACHABLE();
}

/* The one or two places where a kind makes sense. */
static bool phase_fits(const struct fault *fault)
{
    switch (fault->kind) {
    case FAULT_BAD_CERTIFICATE:
        return fault->phase == PHASE_TLS;
    case FAULT_LOST_ANSWER:
        return fault->phase == PHASE_ACCEPTED;
    case FAULT_TOKEN_EXPIRED:
        return fault->phase == default_phase(fault->service, fault->kind);
    case FAULT_THROTTLE:
    case FAULT_STATUS:
    case FAULT_REPLY:
    case FAULT_HANG:
    case FAULT_SLOW:
    case FAULT_RESET:
        break;
    }
    if (fault->service == SIM_HVE) {
        return fault->phase != PHASE_TLS && fault->phase != PHASE_REQUEST;
    }
    return fault->phase == PHASE_REQUEST || fault->phase == PHASE_ACCEPTED;
}

static int check_phase(const struct fault *fault, struct err *err)
{
    if (!phase_fits(fault)) {
        return err_set(err, ERR_INVAL, "A %s fault of %s cannot happen at \"%s\".",
                       KIND_NAMES[fault->kind], sim_service_name(fault->service),
                       PHASE_NAMES[fault->phase]);
    }
    return 0;
}

static int add_fault(struct faults *faults, const struct fault *fault, struct err *err)
{
    int result = check_phase(fault, err);
    if (result != 0) {
        return result;
    }
    if ((fault->kind == FAULT_STATUS || fault->kind == FAULT_REPLY) && fault->status == 0 &&
        fault->text[0] == '\0') {
        return err_set(err, ERR_INVAL, "A %s fault needs \"status\" or \"text\".",
                       KIND_NAMES[fault->kind]);
    }
    if (faults->count == FAULTS_MAX) {
        return err_set(err, ERR_LIMIT, "There are %d faults already; DELETE /fault removes them.",
                       FAULTS_MAX);
    }
    faults->items[faults->count++] = *fault;
    faults->waiting[fault->service][fault->phase]++;
    return 0;
}

static int start_fault(struct span service, struct span kind, struct fault *out, struct err *err)
{
    *out = (struct fault){.probability = 1.0, .count = -1, .retry_after_s = 5, .delay_ms = 1000};
    if (sim_service_find(service, &out->service) != 0) {
        return err_set(err, ERR_INVAL, "\"%.*s\" is no service: hve, acs, graph or token.",
                       SPAN_FMT(service));
    }
    int found = find_name(KIND_NAMES, FAULT_KIND_COUNT, kind);
    if (found < 0) {
        return err_set(
            err, ERR_INVAL,
            "\"%.*s\" is no kind of fault (throttle, status, reply, lost_answer, hang, slow, "
            "reset, token_expired, bad_certificate).",
            SPAN_FMT(kind));
    }
    out->kind = (enum fault_kind)found;
    out->phase = default_phase(out->service, out->kind);
    return 0;
}

static int copy_text(struct span value, char *out, size_t room)
{
    if (value.len >= room) {
        return ERR_LIMIT;
    }
    memcpy(out, value.data, value.len);
    out[value.len] = '\0';
    return 0;
}

static int set_number(struct fault *fault, struct span key, struct span value)
{
    uint64_t number = 0;
    if (span_to_u64(value, 86400000, &number) != 0) {
        return ERR_INVAL;
    }
    if (span_eq(key, SPAN_LIT("count"))) {
        fault->count = (int64_t)number;
    } else if (span_eq(key, SPAN_LIT("retry_after"))) {
        fault->retry_after_s = (uint32_t)number;
        fault->has_retry_after = true;
    } else if (span_eq(key, SPAN_LIT("status"))) {
        fault->status = (uint32_t)number;
        return number >= 200 && number <= 599 ? 0 : ERR_INVAL;
    } else if (span_eq(key, SPAN_LIT("delay_ms"))) {
        fault->delay_ms = (int64_t)number;
    } else {
        return ERR_NOTFOUND;
    }
    return 0;
}

static int set_probability(struct fault *fault, struct span value)
{
    char text[32];
    char *end = NULL;
    if (value.len == 0 || copy_text(value, text, sizeof(text)) != 0) {
        return ERR_INVAL;
    }
    fault->probability = strtod(text, &end);
    return *end == '\0' && fault->probability >= 0.0 && fault->probability <= 1.0 ? 0 : ERR_INVAL;
}

static int set_key(struct fault *fault, struct span key, struct span value, struct err *err)
{
    int result = 0;
    if (span_eq(key, SPAN_LIT("probability"))) {
        result = set_probability(fault, value);
    } else if (span_eq(key, SPAN_LIT("text"))) {
        result = copy_text(value, fault->text, sizeof(fault->text));
    } else if (span_eq(key, SPAN_LIT("code"))) {
        result = copy_text(value, fault->code, sizeof(fault->code));
    } else if (span_eq(key, SPAN_LIT("match"))) {
        result = copy_text(value, fault->match, sizeof(fault->match));
    } else if (span_eq(key, SPAN_LIT("phase"))) {
        int phase = find_name(PHASE_NAMES, FAULT_PHASE_COUNT, value);
        fault->phase = phase >= 0 ? (enum fault_phase)phase : fault->phase;
        result = phase >= 0 ? 0 : ERR_INVAL;
    } else {
        result = set_number(fault, key, value);
    }
    if (result != 0) {
        return err_set(err, ERR_INVAL, "%.*s=%.*s is nothing a fault understands.", SPAN_FMT(key),
                       SPAN_FMT(value));
    }
    return 0;
}

int faults_add_spec(struct faults *faults, struct span spec, struct err *err)
{
    struct fault fault;
    struct span service = span_cut(&spec, ':');
    struct span kind = span_cut(&spec, ':');
    int result = start_fault(service, kind, &fault, err);
    while (result == 0 && spec.len > 0) {
        /* A text may contain colons, so it comes last. */
        bool is_text = span_starts(spec, SPAN_LIT("text="));
        struct span value = is_text ? spec : span_cut(&spec, ':');
        if (is_text) {
            spec.len = 0;
        }
        struct span key = span_cut(&value, '=');
        result = set_key(&fault, key, value, err);
    }
    return result == 0 ? add_fault(faults, &fault, err) : result;
}

/* JSON values arrive at set_key as text, so that both forms know the same keys and bounds. */
static int set_json_key(struct fault *fault, const char *key, const json_t *value, struct err *err)
{
    char text[40];
    if (json_is_string(value)) {
        return set_key(fault, span_of(key),
                       span_make(json_string_value(value), json_string_length(value)), err);
    }
    if (json_is_integer(value)) {
        (void)snprintf(text, sizeof(text), "%lld", (long long)json_integer_value(value));
        return set_key(fault, span_of(key), span_of(text), err);
    }
    if (json_is_real(value)) {
        (void)snprintf(text, sizeof(text), "%.9g", json_real_value(value));
        return set_key(fault, span_of(key), span_of(text), err);
    }
    return err_set(err, ERR_INVAL, "\"%s\" must be a text or a number.", key);
}

static int add_object(struct faults *faults, const json_t *object, struct err *err)
{
    const char *service = json_string_value(json_object_get(object, "service"));
    const char *kind = json_string_value(json_object_get(object, "kind"));
    struct fault fault;
    int result = start_fault(span_of(service), span_of(kind), &fault, err);
    if (result != 0) {
        return result;
    }
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)object, key, value)
    {
        if (strcmp(key, "service") != 0 && strcmp(key, "kind") != 0) {
            result = set_json_key(&fault, key, value, err);
            if (result != 0) {
                return result;
            }
        }
    }
    return add_fault(faults, &fault, err);
}

int faults_add_json(struct faults *faults, const json_t *body, struct err *err)
{
    if (json_is_object(body)) {
        return add_object(faults, body, err);
    }
    if (!json_is_array(body)) {
        return err_set(err, ERR_INVAL, "A fault is a JSON object, or a list of them.");
    }
    size_t index = 0;
    json_t *item = NULL;
    json_array_foreach(body, index, item)
    {
        int result = add_object(faults, item, err);
        if (result != 0) {
            return result;
        }
    }
    return 0;
}

json_t *faults_json(const struct faults *faults)
{
    json_t *list = json_array();
    for (size_t i = 0; i < faults->count; i++) {
        const struct fault *fault = &faults->items[i];
        json_t *item = json_pack(
            "{s:s, s:s, s:s, s:f, s:I, s:I}", "service", sim_service_name(fault->service), "kind",
            KIND_NAMES[fault->kind], "phase", PHASE_NAMES[fault->phase], "probability",
            fault->probability, "left", (json_int_t)fault->count, "hits", (json_int_t)fault->hits);
        ASSERT(item != NULL && json_array_append_new(list, item) == 0);
    }
    return list;
}

/* xorshift64*: repeatable with --seed, and nobody here attacks it. */
static double next_random(struct faults *faults)
{
    uint64_t x = faults->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    faults->random = x;
    return (double)((x * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}

bool faults_wait(const struct faults *faults, enum sim_service service, enum fault_phase phase)
{
    return faults->waiting[service][phase] > 0;
}

const struct fault *faults_take(struct faults *faults, enum sim_service service,
                                enum fault_phase phase, struct span subject)
{
    if (!faults_wait(faults, service, phase)) {
        return NULL;
    }
    for (size_t i = 0; i < faults->count; i++) {
        struct fault *fault = &faults->items[i];
        if (fault->service != service || fault->phase != phase || fault->count == 0) {
            continue;
        }
        if (fault->match[0] != '\0' && span_search(subject, span_of(fault->match)) == subject.len) {
            continue;
        }
        if (fault->probability < 1.0 && next_random(faults) >= fault->probability) {
            continue;
        }
        fault->hits++;
        if (fault->count > 0 && --fault->count == 0) {
            faults->waiting[service][phase]--;
        }
        return fault;
    }
    return NULL;
}
