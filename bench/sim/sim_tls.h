/* The simulators' own CA and server certificates.
 *
 * Made once per --dir with libcrypto and used again while they are good for another day:
 *
 *     ca.pem ca.key          the CA clients are told to trust
 *     server.pem server.key  localhost, 127.0.0.1, ::1, smtp.hve.sim, acs.sim, graph.sim, login.sim
 *     bad.pem bad.key        signed by nobody's CA, for another name: the bad_certificate fault
 *
 * Keys are P-256 (a handshake for every message must be affordable) and mode 0600. Thread: any;
 * called at start. */
#ifndef HEAVE_BENCH_SIM_SIM_TLS_H
#define HEAVE_BENCH_SIM_SIM_TLS_H

#include "gateway/base/err.h"

#define SIM_TLS_PATH_MAX 1024

struct sim_tls_files {
    char ca[SIM_TLS_PATH_MAX];
    char ca_key[SIM_TLS_PATH_MAX];
    char server[SIM_TLS_PATH_MAX];
    char server_key[SIM_TLS_PATH_MAX];
    char bad[SIM_TLS_PATH_MAX];
    char bad_key[SIM_TLS_PATH_MAX];
};

/* Makes what is missing in `dir` (which must exist) and fills in the paths.
 * Errors: ERR_IO (a file), ERR_INVAL (libcrypto refused, path too long), with a sentence. */
MUST_USE int sim_tls_prepare(const char *dir, struct sim_tls_files *out, struct err *err);

#endif
