//! Labels that take one of a few values, each known before anything is counted.

/// An enum whose `ALL` has each value at the place of its number, and the label of each.
macro_rules! labels {
    ($(#[$about:meta])* $name:ident { $($(#[$of:meta])* $value:ident = $label:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $value,)*
        }

        impl $name {
            pub(in crate::telemetry) const ALL: [Self; [$($label),*].len()] = [$(Self::$value),*];

            pub(in crate::telemetry) fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $label,)*
                }
            }
        }
    };
}

labels! {
    /// The stages of a request.
    Stage {
        Decode = "decode",
        Preprocess = "preprocess",
        Queue = "queue",
        Policy = "policy",
        Backbone = "backbone",
    }
}

labels! {
    /// Why work was turned away or given up.
    Rejected {
        /// It had no API key, or an unknown one.
        Unauthenticated = "unauthenticated",
        /// The queue had no room.
        QueueFull = "queue_full",
        /// As many images of its connection waited as may.
        ConnectionFull = "connection_full",
        /// As many images of the model waited as may.
        ModelQueueFull = "model_queue_full",
        /// It would have been answered after its deadline.
        TooLate = "too_late",
        /// Bodies in memory are at their limit.
        Memory = "memory",
        /// The server is stopping.
        ShuttingDown = "shutting_down",
        /// The request's time ran out before its image was answered.
        Deadline = "deadline",
        /// The client went away before its image was answered.
        Cancelled = "cancelled",
    }
}

labels! {
    /// Why the server closed a connection.
    Closed {
        /// As many were open as may be.
        Limit = "limit",
        /// Its client did not take an answer in time.
        Untaken = "untaken",
    }
}

labels! {
    /// Why an image that was to be run by the full net too was not.
    Dropped {
        /// As many waited as may.
        Full = "full",
        /// The full net was not to be had as one graph.
        NoGraph = "no_graph",
        /// One of the sides failed.
        Failed = "failed",
    }
}
