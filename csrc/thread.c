/*
 * thread.c: threads of our own, in which no signal handler of the host program ever runs.
 *
 * Theory of operation: a new thread inherits the mask of its maker, so every signal is blocked for
 * the moment in which it is made.
 */
#include "internal.h"

#include <signal.h>

int pz_start_thread(pthread_t *thread, void *(*body)(void *), void *argument)
{
    sigset_t everything, before;

    sigfillset(&everything);
    pthread_sigmask(SIG_SETMASK, &everything, &before);
    int error = pthread_create(thread, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

int pz_in_helper_thread(void *(*body)(void *), void *argument)
{
    pthread_t helper;
    int rc = pz_start_thread(&helper, body, argument);

    if (rc == 0)
        pthread_join(helper, NULL);
    return rc;
}
