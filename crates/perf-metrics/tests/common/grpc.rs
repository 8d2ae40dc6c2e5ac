//! The real service over gRPC, which keeps what arrives.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tonic::codec::CompressionEncoding;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

type Arrived = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

/// What a gRPC server takes unless it is told otherwise: 4 MiB.
pub(crate) const BYTES_MAX: usize = 4 << 20;

struct Service {
    arrived: Arrived,
    status: Option<Status>,
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        if let Some(status) = &self.status {
            return Err(status.clone());
        }
        self.arrived.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Serves until the process ends. Takes messages of up to `bytes_max`, and answers with `status` if there is one.
pub(crate) fn serve(
    mut server: Server,
    bytes_max: usize,
    status: Option<Status>,
) -> (SocketAddr, Arrived) {
    let arrived = Arrived::default();
    let service = MetricsServiceServer::new(Service {
        arrived: Arc::clone(&arrived),
        status,
    })
    .max_decoding_message_size(bytes_max)
    .accept_compressed(CompressionEncoding::Gzip);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let router = server.add_service(service);
            router.serve_with_incoming(incoming).await.unwrap();
        });
    });
    (told.recv().unwrap(), arrived)
}
